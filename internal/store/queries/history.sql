-- name: PutIncarnation :exec
INSERT INTO incarnations (branch_id, number, parent, fork_lsn, begin_lsn, begin_at) VALUES ($1, $2, sqlc.narg('parent'), $3, $3, $4)
ON CONFLICT (branch_id, number) DO UPDATE SET parent = excluded.parent, fork_lsn = excluded.fork_lsn, begin_lsn = excluded.begin_lsn,
    begin_at = excluded.begin_at;

-- name: BeginIncarnation :exec
UPDATE incarnations SET begin_lsn = $3, begin_at = $4 WHERE branch_id = $1 AND number = $2;

-- name: Lineage :many
WITH RECURSIVE up AS (
    SELECT i.*, 0 AS depth FROM incarnations i WHERE i.branch_id = $1 AND i.number = $2
    UNION ALL
    SELECT i.*, up.depth + 1 FROM up JOIN incarnations i ON i.id = up.parent
)
SELECT id, branch_id, number, parent, fork_lsn, begin_lsn, begin_at FROM up ORDER BY depth;

-- name: KeptSnapshots :many
SELECT * FROM history_snapshots WHERE incarnation = ANY(@incarnations::bigint[]) AND state = 'kept' ORDER BY end_lsn, id;

-- name: InsertSnapshot :one
INSERT INTO history_snapshots (incarnation, volume, state, reason, redo_lsn, end_lsn) VALUES ($1, $2, $3, $4, $5, $6) RETURNING id;

-- name: KeepSnapshot :exec
UPDATE history_snapshots SET state = 'kept', redo_lsn = $2, end_lsn = $3, taken_at = $4, took_ms = $5 WHERE id = $1 AND state = 'making';

-- name: DropSnapshot :exec
UPDATE history_snapshots SET state = 'dropping' WHERE id = $1;

-- name: DeleteSnapshot :exec
DELETE FROM history_snapshots WHERE id = $1;

-- name: BranchSnapshots :many
SELECT s.* FROM history_snapshots s JOIN incarnations i ON i.id = s.incarnation WHERE i.branch_id = $1 ORDER BY s.id;

-- name: AllSnapshots :many
SELECT * FROM history_snapshots ORDER BY incarnation, end_lsn, id;

-- name: AllIncarnations :many
SELECT i.*, p.history_retention, b.project_id, b.volume_id, b.name, (b.deleting OR p.deleting)::boolean AS deleting, (b.incarnation = i.number)::boolean AS current,
    coalesce(h.server, 0)::bigint AS holder
FROM incarnations i JOIN branches b ON b.id = i.branch_id JOIN projects p ON p.id = b.project_id LEFT JOIN holders h ON h.project_id = b.project_id
ORDER BY i.id;

-- name: HistoryOf :one
SELECT i.*, p.history_retention FROM incarnations i JOIN branches b ON b.id = i.branch_id JOIN projects p ON p.id = b.project_id
WHERE i.branch_id = $1 AND i.number = $2;
