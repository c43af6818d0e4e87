-- Lists the records that have an export.
-- KEYS: mark, underway
-- ARGV: floor
-- Returns: 'ok', settled, then cell, revision and record of each; or 'mark' if the mark has another floor (the caller's mark is outdated)
local mark = redis.call('HMGET', KEYS[1], 'floor', 'settled', 'top')
if mark[1] ~= ARGV[1] then return {'mark'} end
local found = {'ok', mark[2]}
for _, cell in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    local kept = redis.call('HMGET', 'export:' .. #cell .. ':' .. cell, 'revision', 'record')
    -- List a missing record as empty: only a read of that cell is refused, not the whole list.
    table.insert(found, cell)
    table.insert(found, kept[1] or '0')
    table.insert(found, kept[2] or '')
end
return found
