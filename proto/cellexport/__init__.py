"""What the three programs and Python callers share.

- `v1`: the contract, and the stubs made from it
- `client`: a channel to the server, done right
- `settings`: settings from the environment
- `logs`: the application log
"""
