-- Reads the mark (it says which run of Redis the servers trust). Writes a new mark if this Redis may have lost writes.
-- KEYS: mark
-- ARGV: the time in milliseconds; the floor of the mark that the caller knows, or 0
-- Returns: the mark's floor (the lowest revision after the latest loss) and settled ('1' if the store is not in doubt);
--          Redis's eviction policy
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local policy = string.match(redis.call('INFO', 'memory'), 'maxmemory_policy:([%w-]+)') or ''
local mark = redis.call('HMGET', KEYS[1], 'run', 'floor', 'settled', 'top')
local known, floor = tonumber(ARGV[2]), tonumber(mark[2] or 0)
if mark[1] == run and floor >= known then
    return {mark[2], mark[3], policy}
end
-- Redis can't have lost more revisions than this: it loses only the writes of its last moments.
local lost = 60000
floor = math.max(tonumber(ARGV[1]), floor + 1, known + lost, tonumber(mark[4] or 0) + lost)
local text = string.format('%.0f', floor)
redis.call('HSET', KEYS[1], 'run', run, 'floor', text, 'settled', '0', 'top', text)
redis.call('PUBLISH', 'export:changed', '*')
return {text, '0', policy}
