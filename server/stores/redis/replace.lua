-- Writes a record, if the stored record's revision is lower by one.
-- KEYS: mark, record, underway
-- ARGV: floor; cell; revision; record; when its export was accepted, or '' without an export;
--       'queued' if the export waits for an exporter; '1' in a retry, when the first try may have made this write
-- Returns: 'ok', settled ('1' if the store is not in doubt), 1 if the record was written or else 0; or 'mark' if the mark has another floor (the caller's mark is outdated);
--          or 'unknown' if nobody can know whether it was written
local mark = redis.call('HMGET', KEYS[1], 'floor', 'settled', 'top')
if mark[1] ~= ARGV[1] then return {'mark'} end
local floor, revision = tonumber(ARGV[1]), tonumber(ARGV[3])
local kept = redis.call('HMGET', KEYS[2], 'revision', 'record')
if ARGV[7] == '1' then
    if kept[1] == ARGV[3] and kept[2] == ARGV[4] then return {'ok', mark[2], 1} end
    -- The first try may have written the record, and another server may have written its successor since.
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
