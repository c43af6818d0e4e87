-- Reads the record of a cell.
-- KEYS: mark, record, underway
-- ARGV: floor; cell
-- Returns: 'ok', settled, revision, record; or 'mark' if the mark has another floor (the caller's mark is outdated);
--          or 'damaged' if the cell has an export but its record is missing
local mark = redis.call('HMGET', KEYS[1], 'floor', 'settled', 'top')
if mark[1] ~= ARGV[1] then return {'mark'} end
local kept = redis.call('HMGET', KEYS[2], 'revision', 'record')
if not kept[1] and redis.call('ZSCORE', KEYS[3], ARGV[2]) then return {'damaged'} end
return {'ok', mark[2], kept[1], kept[2]}
