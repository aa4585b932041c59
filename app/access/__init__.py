"""Access control: API keys, sessions, scopes, rate limits, and the audit trail."""
