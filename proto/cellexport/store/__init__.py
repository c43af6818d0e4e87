"""The format of the records in the Redis store, which several servers share."""
