"""The atomic steps in Redis, in Lua, and the names of the keys.

`export:mark`             a hash: `run` (which run of which Redis wrote it), `floor`, `settled`, and `top`, the highest
                          revision that was ever written
`export:{len}:{cell}`     a hash: `revision`, and `record`, a `cellexport.store.v1.CellRecord`
`export:underway`         a sorted set: cells with an export, by the time it was accepted
`export:changed`          a channel: the name of a cell whose record has changed, nothing if an export was queued, or
                          `*` if the mark has changed, and with it everything

What the mark says is believed only as long as it was made in this very run of this Redis. A mark that is missing, or of
another run, means that writes may be lost: an emptied Redis, a restart, a replica that was promoted. Then a new mark is
made, with a floor above all revisions that there ever were, and it is not settled. A record below the floor is doubtful
as long as that is so; to whoever reads it, it has the floor's revision.

Every script but the first begins with the mark that its caller knows, and does nothing if that is not the one.
"""

MARK = "export:mark"
UNDERWAY = "export:underway"
CHANNEL = "export:changed"
EVERYTHING = b"*"


def cell_key(cell: str) -> str:
    """The key of a cell's record."""
    return f"export:{len(cell)}:{cell}"


# Keys: mark. Arguments: the time in milliseconds; the floor that the caller knows, or 0.
# Returns floor, settled, and the policy of eviction.
BEGIN = """
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local policy = string.match(redis.call('INFO', 'memory'), 'maxmemory_policy:([%w-]+)') or ''
local mark = redis.call('HMGET', KEYS[1], 'run', 'floor', 'settled', 'top')
local known, floor = tonumber(ARGV[2]), tonumber(mark[2] or 0)
if mark[1] == run and floor >= known then
    return {mark[2], mark[3], policy}
end
-- Far enough above what may have been written in the moments that are lost.
local lost = 60000
floor = math.max(tonumber(ARGV[1]), floor + 1, known + lost, tonumber(mark[4] or 0) + lost)
local text = string.format('%.0f', floor)
redis.call('HSET', KEYS[1], 'run', run, 'floor', text, 'settled', '0', 'top', text)
redis.call('PUBLISH', 'export:changed', '*')
return {text, '0', policy}
"""

_KNOWS_THE_MARK = """
local mark = redis.call('HMGET', KEYS[1], 'floor', 'settled', 'top')
if mark[1] ~= ARGV[1] then return {'mark'} end
"""

# Keys: mark, record, underway. Arguments: floor; cell.
# Returns settled, revision, record.
READ = (
    _KNOWS_THE_MARK
    + """
local kept = redis.call('HMGET', KEYS[2], 'revision', 'record')
if not kept[1] and redis.call('ZSCORE', KEYS[3], ARGV[2]) then return {'damaged'} end
return {'ok', mark[2], kept[1], kept[2]}
"""
)

# Keys: mark, record, underway. Arguments: floor; cell; revision; record; when its export was accepted, or nothing if it
# has none; what to publish besides the cell, if anything; 1 if this may have been done already.
# Returns whether it was written.
REPLACE = (
    _KNOWS_THE_MARK
    + """
local floor, revision = tonumber(ARGV[1]), tonumber(ARGV[3])
local kept = redis.call('HMGET', KEYS[2], 'revision', 'record')
if ARGV[7] == '1' then
    if kept[1] == ARGV[3] and kept[2] == ARGV[4] then return {'ok', mark[2], 1} end
    -- It may have been written, and somebody else may have gone on from there.
    if tonumber(kept[1] or 0) >= revision then return {'unknown'} end
end
if math.max(tonumber(kept[1] or 0), floor) ~= revision - 1 then return {'ok', mark[2], 0} end
redis.call('HSET', KEYS[2], 'revision', ARGV[3], 'record', ARGV[4])
if ARGV[5] == '' then
    redis.call('ZREM', KEYS[3], ARGV[2])
else
    redis.call('ZADD', KEYS[3], ARGV[5], ARGV[2])
end
if revision > tonumber(mark[3]) then redis.call('HSET', KEYS[1], 'top', ARGV[3]) end
redis.call('PUBLISH', 'export:changed', ARGV[2])
if ARGV[6] == 'queued' then redis.call('PUBLISH', 'export:changed', '') end
return {'ok', mark[2], 1}
"""
)

# Keys: mark, underway. Arguments: floor.
# Returns settled, then cell, revision and record of each.
LIST = (
    _KNOWS_THE_MARK
    + """
local found = {'ok', mark[2]}
for _, cell in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    local kept = redis.call('HMGET', 'export:' .. #cell .. ':' .. cell, 'revision', 'record')
    -- One that is missing is told to whoever reads it, and is no reason to forget the others.
    table.insert(found, cell)
    table.insert(found, kept[1] or '0')
    table.insert(found, kept[2] or '')
end
return found
"""
)

# Keys: mark. Arguments: floor.
SETTLE = (
    _KNOWS_THE_MARK
    + """
redis.call('HSET', KEYS[1], 'settled', '1')
redis.call('PUBLISH', 'export:changed', '*')
return {'ok', '1'}
"""
)
