"""The `/v1` API as typed JSON: models, devices, plans, strategies, profiles, queries, jobs, uploads and live figures."""
