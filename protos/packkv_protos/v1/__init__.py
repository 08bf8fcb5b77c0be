"""Version 1 of the API: BlockStore (serving) and Admin (operating)."""
