"""Registries over HTTP: who they are (hosts.toml), who we are to them (credentials, tokens), manifests, and ranges of
blobs.

Everything here blocks and is safe to call from many threads. The door is `client.Client`.
"""
