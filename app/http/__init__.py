"""HTTP beneath the routes: the server, its connections, the middleware, and the replies to errors."""
