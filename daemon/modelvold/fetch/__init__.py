"""How bytes come: what to ask for next is decided by `plan`, whether to ask again by `retry`, and done by the fetcher's workers."""
