"""Who may do what: keys, sessions, scopes, rates, and the audit journal."""
