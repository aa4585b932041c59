"""The `/v1` API: models, devices, plans, strategies, profiles, queries, jobs, uploads and live figures as typed JSON."""
