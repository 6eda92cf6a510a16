-- name: HoldProject :exec
INSERT INTO holders (project_id, server, ready)
SELECT p.id, @server::bigint, NOT EXISTS (SELECT FROM handles h JOIN branches b ON b.id = h.branch_id WHERE b.project_id = p.id)
FROM projects p WHERE p.id = @project_id
ON CONFLICT DO NOTHING;

-- name: GetHolder :one
SELECT server, ready FROM holders WHERE project_id = $1;

-- name: InheritProject :execrows
UPDATE holders SET server = @heir::bigint, ready = false WHERE project_id = @project_id AND server = @dead::bigint;

-- name: InheritProjects :exec
UPDATE holders h SET server = @heir::bigint, ready = false
WHERE h.server = @dead::bigint
  AND (EXISTS (SELECT FROM handles x JOIN branches b ON b.id = x.branch_id WHERE b.project_id = h.project_id)
    OR EXISTS (SELECT FROM endpoints e WHERE e.project_id = h.project_id AND (e.state = 'active' OR e.pending_state <> ''))
    OR EXISTS (SELECT FROM operations o WHERE o.project_id = h.project_id AND o.status IN ('scheduling', 'running')));

-- name: DropHolder :exec
DELETE FROM holders WHERE server = @server::bigint;

-- name: ListUnreadyProjects :many
SELECT project_id FROM holders WHERE server = @server::bigint AND NOT ready;

-- name: ReadyProject :exec
UPDATE holders SET ready = true WHERE project_id = $1 AND server = @server::bigint;

-- name: ResetHolders :exec
DELETE FROM holders;

-- name: HoldBusyProjects :exec
INSERT INTO holders (project_id, server, ready)
SELECT DISTINCT b.project_id, @server::bigint, true FROM handles h JOIN branches b ON b.id = h.branch_id
ON CONFLICT DO NOTHING;

-- name: LeaveProjects :many
DELETE FROM holders h
WHERE h.server = @server::bigint AND h.ready
  AND NOT EXISTS (SELECT FROM handles x JOIN branches b ON b.id = x.branch_id WHERE b.project_id = h.project_id)
  AND NOT EXISTS (SELECT FROM endpoints e WHERE e.project_id = h.project_id AND (e.state = 'active' OR e.pending_state <> ''))
  AND NOT EXISTS (SELECT FROM operations o WHERE o.project_id = h.project_id AND o.status IN ('scheduling', 'running'))
RETURNING project_id;

-- name: HeadHolder :one
SELECT o.project_id, o.claimed_by, h.server, h.ready
FROM operations o LEFT JOIN holders h ON h.project_id = o.project_id
WHERE o.branch_id = $1 AND o.status IN ('scheduling', 'running') ORDER BY o.seq LIMIT 1;
