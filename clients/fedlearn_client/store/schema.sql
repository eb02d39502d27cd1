-- The phone's encrypted store. One file, SQLCipher; on top of it, bodies derived from signals are encrypted under a key
-- of their stream. Nothing here holds text. Changes raise user_version and add a migration.
PRAGMA user_version = 1;

-- what apps registered. key_alias names the KeyStore key under which wrapped_key, and so every body, can be read
CREATE TABLE streams (
    id INTEGER PRIMARY KEY,
    app TEXT NOT NULL,
    name TEXT NOT NULL,
    data_type TEXT NOT NULL,
    key_alias TEXT NOT NULL UNIQUE,   -- a new one after each withdrawal
    wrapped_key BLOB NOT NULL,        -- empty until the first signal is kept
    first_row INTEGER NOT NULL,       -- rows before it were sealed under a key that is destroyed: they do not exist
    restricted TEXT NOT NULL,         -- JSON list of purposes the app withholds
    registered REAL NOT NULL,
    UNIQUE (app, name)
);

-- body: a Said or a catalogue key, sealed with AES-256-GCM under the stream's key
CREATE TABLE signals (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: streams.first_row relies on it
    stream INTEGER NOT NULL REFERENCES streams(id),
    mark BLOB NOT NULL,               -- keyed hash of the app's signal id: counts once
    time REAL NOT NULL,
    expires REAL NOT NULL,
    catalogue TEXT NOT NULL,          -- digest of the index it was made with
    body BLOB NOT NULL,
    UNIQUE (stream, mark)
);
CREATE INDEX signals_by_time ON signals (stream, time);
CREATE INDEX signals_by_expiry ON signals (expires);

CREATE TABLE grants (
    app TEXT NOT NULL,
    data_type TEXT NOT NULL,
    purpose TEXT NOT NULL,
    recipient TEXT NOT NULL,
    is_on INTEGER NOT NULL,
    text_version INTEGER NOT NULL,
    agreed TEXT NOT NULL,             -- digest of purpose, words, recipient and source as they were agreed to
    time REAL NOT NULL,
    PRIMARY KEY (app, data_type, purpose, recipient)
);

-- destructions that have begun; finished again after a crash, whatever the cause of the crash
CREATE TABLE withdrawals (
    id INTEGER PRIMARY KEY,
    reason TEXT NOT NULL,             -- withdrawn, purged, text_changed, ...
    detail TEXT NOT NULL,             -- JSON: the grant or stream, aliases to destroy
    begun REAL NOT NULL,
    finished REAL
);

CREATE TABLE receipts (
    id INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    statement BLOB NOT NULL,
    signature BLOB NOT NULL
);

-- append-only and chained; never deleted, by no withdrawal
CREATE TABLE participations (
    id INTEGER PRIMARY KEY,           -- 1, 2, 3, ...
    kind TEXT NOT NULL,               -- participation; seen: a run at first sight; lost, clock: see docs/device-budget.md
    recipient TEXT NOT NULL,
    run_id TEXT NOT NULL,             -- with its recipient, names the run; "" of lost and clock
    step INTEGER NOT NULL,            -- of seen: b steps are waited from here, or -1
    attempt INTEGER NOT NULL,
    purpose TEXT NOT NULL,
    mechanism TEXT NOT NULL,          -- canonical JSON of what every task of the run says; of lost, of what is known
    count INTEGER NOT NULL,           -- participations charged for the run so far, assumed ones included
    rho REAL NOT NULL,                -- zCDP of the run so far
    time REAL NOT NULL,
    nonce BLOB NOT NULL,              -- random: no two copies of the store go on alike
    previous BLOB NOT NULL,
    digest BLOB NOT NULL
);

CREATE TABLE tokens (
    token BLOB PRIMARY KEY,
    expires REAL NOT NULL
);

-- everything that leaves, written before it does
CREATE TABLE egress (
    id INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    method TEXT NOT NULL,
    purpose TEXT NOT NULL,
    recipient TEXT NOT NULL,
    run_id TEXT NOT NULL,
    step INTEGER NOT NULL,
    size INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    state TEXT NOT NULL,              -- prepared, sent, acknowledged, failed, destroyed
    body BLOB,                        -- NULL once no longer kept; of an upload: sealed under its pair's key, bound to sha256
    expires REAL NOT NULL,            -- of the task: a prepared upload is not sent after it
    basis TEXT NOT NULL DEFAULT ''    -- of an upload: digest of the streams it was made from; void when they change
);

-- what uploads are sealed under; another alias after each withdrawal from the pair
CREATE TABLE egress_keys (
    purpose TEXT NOT NULL,
    recipient TEXT NOT NULL,
    key_alias TEXT NOT NULL UNIQUE,
    wrapped_key BLOB NOT NULL,
    PRIMARY KEY (purpose, recipient)
);

CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    purpose TEXT NOT NULL,
    recipient TEXT NOT NULL,
    run_id TEXT NOT NULL,
    step INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    examples INTEGER NOT NULL
);

-- this phone's own parameters, sealed under a KeyStore key of their own; destroyed with the data they came from
CREATE TABLE private_parameters (
    plan TEXT PRIMARY KEY,            -- digest of the plan
    purpose TEXT NOT NULL,            -- of the plan: a withdrawal from this purpose and recipient destroys them
    recipient TEXT NOT NULL,
    key_alias TEXT NOT NULL,
    wrapped_key BLOB NOT NULL,
    body BLOB NOT NULL,
    basis TEXT NOT NULL,              -- digest of the streams they were trained on; of no use when those change
    expires REAL NOT NULL             -- shortest retention of those streams, from the first training on
);

-- small facts: owner_age, personal_off, paused, status_version, status, latest_time, roster_version, hash_key, ...
CREATE TABLE facts (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
);
