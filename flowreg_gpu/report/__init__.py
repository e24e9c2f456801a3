"""A page that shows what a registration has done, and its pictures; matplotlib draws, Jinja fills the page."""
