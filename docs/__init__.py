"""The site's pages, and in `docs.made` what is written into them by scripts."""
