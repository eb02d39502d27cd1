"""A gateway's certificate: checked before it is used, and taken up again when its files are replaced."""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import grpc
from cryptography import x509

from fedlearn.errors import ConfigError
from fedlearn_server.deployment.certificates import now_utc

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate chain and its key, PEM.

    Args:
        chain: this gateway's certificate first.
        key: private key.
        expires: when the gateway's own certificate does.
    """

    chain: bytes
    key: bytes = field(repr=False)
    expires: datetime


class CertificateFiles:
    """A certificate and its key in files that others may replace while the gateway runs.

    A pair that does not fit, has expired, or is half written is told in the log, and the one before stays.

    Args:
        certificate: PEM chain.
        key: PEM.

    Raises:
        ConfigError: there is no pair to begin with.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self._lock = threading.Lock()
        self._seen = self._mark()
        self._pair = read_pair(certificate, key, now_utc())

    @property
    def expires(self) -> float:
        """When the certificate in use expires, seconds since the Unix epoch."""
        return self._pair.expires.timestamp()

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials that look at the files at each handshake; no certificate is asked of phones."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._pair), self._fetch, require_client_authentication=False
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        with self._lock:
            try:
                mark = self._mark()
                if mark == self._seen:
                    return None
                self._seen = mark
                self._pair = read_pair(self._certificate, self._key, now_utc())
            except ConfigError as error:
                logger.warning("the new certificate cannot be used, the old one stays: %s", error)
                return None
            logger.info("a new certificate is in use")
            return _configuration(self._pair)

    def _mark(self) -> tuple[int, ...]:
        try:
            found = [path.stat() for path in (self._certificate, self._key)]
        except OSError:
            return ()
        return tuple(number for one in found for number in (one.st_mtime_ns, one.st_ino, one.st_size))


def read_pair(certificate: Path, key: Path, now: datetime) -> Pair:
    """Return a certificate and its key.

    Raises:
        ConfigError: cannot be read, no certificate, not a pair, or not valid now.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_password)
        chain = certificate.read_bytes()
        own = x509.load_pem_x509_certificate(chain)
        pair = Pair(chain, key.read_bytes(), own.not_valid_after_utc)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"certificate={certificate}, key={key}: no pair that can be read ({error}).") from error
    if not own.not_valid_before_utc <= now < own.not_valid_after_utc:
        raise ConfigError(f"certificate={certificate}: valid to {own.not_valid_after_utc:%Y-%m-%d}, not now; renew it.")
    return pair


def _configuration(pair: Pair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.chain)])


def _no_password() -> str:
    """An encrypted key is refused, where OpenSSL would ask for its password on the terminal."""
    return ""
