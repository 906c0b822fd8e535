"""Names, settings and schemas: what every other package agrees on. Imports none of them."""
