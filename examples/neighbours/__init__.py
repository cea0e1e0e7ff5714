"""Methods beside NOBLE on models with branches; `docs/neighbours.md` says what each is."""
