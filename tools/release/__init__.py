"""Makes a release and checks one: ``make release KEY=...``; docs/release.md."""
