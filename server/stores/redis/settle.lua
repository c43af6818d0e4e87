-- Ends the doubt of the store (its records may be outdated): the mark with this floor becomes settled.
-- KEYS: mark
-- ARGV: floor
-- Returns: 'ok', '1'; or 'mark' if the mark has another floor (the caller's mark is outdated)
local mark = redis.call('HMGET', KEYS[1], 'floor', 'settled', 'top')
if mark[1] ~= ARGV[1] then return {'mark'} end
redis.call('HSET', KEYS[1], 'settled', '1')
redis.call('PUBLISH', 'export:changed', '*')
return {'ok', '1'}
