"""One model as one read-only tree: what it holds, the image that shows it, and how a reference becomes one."""
