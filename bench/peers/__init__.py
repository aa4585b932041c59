"""Programs that serve a model with other servers. They run in the peers' environment, not in this one."""
