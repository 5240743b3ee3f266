"""A folder → a ModelPack artifact of raw layers in a registry. Needs no daemon.

`folder.pack` reads and hashes, `push.push` uploads; `classify`, `describe` and `artifact` between them are pure.
"""
