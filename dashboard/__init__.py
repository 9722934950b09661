"""Control API, read API and the pages: what a merchant configures and looks at."""
