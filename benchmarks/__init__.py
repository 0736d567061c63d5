"""One command answers one question: `README.md` beside this file lists them.

A question is a module, or a folder where it takes several. What several need is in `_shared`.
"""
