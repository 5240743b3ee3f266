"""Volumes lent to consumers: opened, mounted, made complete, given back, and reported on. What snapshots and operators share."""
