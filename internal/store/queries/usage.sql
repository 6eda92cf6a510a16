-- name: LockMeters :exec
SELECT pg_advisory_xact_lock(@class::int, 1);

-- name: ListComputeMeters :many
SELECT coalesce(e.id, m.endpoint_id)::text AS endpoint_id, coalesce(e.branch_id, m.branch_id)::text AS branch_id,
    coalesce(e.project_id, m.project_id)::text AS project_id,
    coalesce(m.run, 'epoch')::timestamptz AS run, coalesce(m.seen_at, 'epoch')::timestamptz AS seen_at
FROM (SELECT id, branch_id, project_id FROM endpoints WHERE id = ANY(@ids::text[])) e
FULL JOIN (SELECT * FROM compute_meters WHERE endpoint_id = ANY(@ids::text[])) m ON m.endpoint_id = e.id;

-- name: SaveComputeMeters :exec
INSERT INTO compute_meters (endpoint_id, project_id, branch_id, run, seen_at)
SELECT unnest(@endpoint_ids::text[]), unnest(@project_ids::text[]), unnest(@branch_ids::text[]), unnest(@runs::timestamptz[]), unnest(@seen::timestamptz[])
ON CONFLICT (endpoint_id) DO UPDATE SET run = excluded.run, seen_at = excluded.seen_at;

-- name: StartBranchMeter :exec
INSERT INTO branch_meters (branch_id, project_id, lsn, hour) VALUES ($1, $2, $3, $4)
ON CONFLICT (branch_id) DO UPDATE SET since = now(), lsn = excluded.lsn, written = 0;

-- name: AddBranchMeters :exec
INSERT INTO branch_meters (branch_id, project_id, lsn, hour)
SELECT b.id, b.project_id, l.lsn, @hour::timestamptz
FROM (SELECT unnest(@ids::text[]) AS id, unnest(@lsns::bigint[]) AS lsn) l JOIN branches b ON b.id = l.id
ON CONFLICT (branch_id) DO NOTHING;

-- name: LockBranchMeters :many
SELECT m.*, (b.parent_id IS NULL)::boolean AS root, b.logical_size FROM branch_meters m JOIN branches b ON b.id = m.branch_id
WHERE m.branch_id = ANY(@ids::text[]) ORDER BY m.branch_id FOR UPDATE OF m;

-- name: SaveBranchMeters :exec
UPDATE branch_meters m SET lsn = n.lsn, written = n.written, logical = n.logical, data = n.data, history = n.history,
    hour_logical = n.hour_logical, hour_data = n.hour_data, hour_history = n.hour_history
FROM (SELECT unnest(@ids::text[]) AS id, unnest(@lsns::bigint[]) AS lsn, unnest(@written::bigint[]) AS written,
        unnest(@logical::bigint[]) AS logical, unnest(@data::bigint[]) AS data, unnest(@history::bigint[]) AS history,
        unnest(@hour_logical::bigint[]) AS hour_logical, unnest(@hour_data::bigint[]) AS hour_data,
        unnest(@hour_history::bigint[]) AS hour_history) n
WHERE m.branch_id = n.id AND m.branch_id = ANY(@ids::text[]);

-- name: AddUsage :exec
INSERT INTO usage AS u (project_id, branch_id, grain, start, active_us, compute_us, written_bytes, transfer_bytes,
    root_byte_hours, child_byte_hours, history_byte_hours, logical_byte_hours)
SELECT n.project_id, coalesce(n.branch_id, ''), n.grain, n.start, sum(n.active)::bigint, sum(n.compute)::bigint,
    sum(n.written)::bigint, sum(n.transfer)::bigint, sum(n.root)::bigint, sum(n.child)::bigint, sum(n.history)::bigint, sum(n.logical)::bigint
FROM (SELECT d.*, g.grain, date_trunc(g.grain, d.at, 'UTC') AS start
    FROM (SELECT unnest(@project_ids::text[]) AS project_id, unnest(@branch_ids::text[]) AS branch_id, unnest(@at::timestamptz[]) AS at,
            unnest(@active::bigint[]) AS active, unnest(@compute::bigint[]) AS compute, unnest(@written::bigint[]) AS written,
            unnest(@transfer::bigint[]) AS transfer, unnest(@root::bigint[]) AS root, unnest(@child::bigint[]) AS child,
            unnest(@history::bigint[]) AS history, unnest(@logical::bigint[]) AS logical) d,
        (SELECT unnest(ARRAY['hour', 'day', 'month']) AS grain) g) n
GROUP BY GROUPING SETS ((n.project_id, n.branch_id, n.grain, n.start), (n.project_id, n.grain, n.start))
ORDER BY 1, 2, 3, 4
ON CONFLICT (project_id, branch_id, grain, start) DO UPDATE SET active_us = u.active_us + excluded.active_us,
    compute_us = u.compute_us + excluded.compute_us, written_bytes = u.written_bytes + excluded.written_bytes,
    transfer_bytes = u.transfer_bytes + excluded.transfer_bytes, root_byte_hours = u.root_byte_hours + excluded.root_byte_hours,
    child_byte_hours = u.child_byte_hours + excluded.child_byte_hours,
    history_byte_hours = u.history_byte_hours + excluded.history_byte_hours,
    logical_byte_hours = u.logical_byte_hours + excluded.logical_byte_hours;

-- name: BranchesBeforeHour :many
SELECT branch_id FROM branch_meters WHERE hour < @hour::timestamptz ORDER BY hour LIMIT @max_rows FOR UPDATE;

-- name: CountStorageHours :many
INSERT INTO usage AS u (project_id, branch_id, grain, start, root_byte_hours, child_byte_hours, history_byte_hours, logical_byte_hours)
SELECT n.project_id, coalesce(n.branch_id, ''), n.grain, n.start, sum(n.root)::bigint, sum(n.child)::bigint, sum(n.history)::bigint, sum(n.logical)::bigint
FROM (SELECT m.project_id, m.branch_id, g.grain, date_trunc(g.grain, h.at, 'UTC') AS start, m.history, m.logical,
        CASE WHEN b.parent_id IS NULL THEN m.data ELSE 0 END AS root, CASE WHEN b.parent_id IS NULL THEN 0 ELSE m.data END AS child
    FROM branch_meters m JOIN branches b ON b.id = m.branch_id,
        generate_series(m.hour + interval '1 hour', @hour::timestamptz, interval '1 hour') h(at),
        (SELECT unnest(ARRAY['hour', 'day', 'month']) AS grain) g
    WHERE m.branch_id = ANY(@ids::text[]) AND (g.grain <> 'hour' OR h.at > @hours_from::timestamptz)) n
GROUP BY GROUPING SETS ((n.project_id, n.branch_id, n.grain, n.start), (n.project_id, n.grain, n.start))
ORDER BY 1, 2, 3, 4
ON CONFLICT (project_id, branch_id, grain, start) DO UPDATE SET root_byte_hours = u.root_byte_hours + excluded.root_byte_hours,
    child_byte_hours = u.child_byte_hours + excluded.child_byte_hours,
    history_byte_hours = u.history_byte_hours + excluded.history_byte_hours,
    logical_byte_hours = u.logical_byte_hours + excluded.logical_byte_hours
RETURNING u.project_id;

-- name: AdvanceStorageHour :exec
UPDATE branch_meters SET hour = @hour::timestamptz, hour_logical = logical, hour_data = data, hour_history = history
WHERE branch_id = ANY(@ids::text[]);

-- name: SetProjectStorage :exec
UPDATE usage u SET storage_bytes = s.storage, logical_bytes = s.logical
FROM (SELECT m.project_id, sum(m.data + m.history)::bigint AS storage, sum(m.logical)::bigint AS logical
    FROM branch_meters m WHERE m.project_id = ANY(@project_ids::text[]) GROUP BY m.project_id) s,
    (SELECT unnest(ARRAY['hour', 'day', 'month']) AS grain) g
WHERE u.project_id = s.project_id AND u.project_id = ANY(@project_ids::text[]) AND u.branch_id = '' AND u.grain = g.grain AND u.start = date_trunc(g.grain, @hour::timestamptz, 'UTC');

-- name: ProjectUsage :many
SELECT * FROM usage WHERE project_id = ANY(@project_ids::text[]) AND branch_id = '' AND grain = 'month' AND start = @month::timestamptz;

-- name: ProjectStorage :many
SELECT project_id, sum(data + history)::bigint AS storage FROM branch_meters WHERE project_id = ANY(@project_ids::text[]) GROUP BY project_id;

-- name: BranchUsage :many
SELECT * FROM usage WHERE project_id = @project_id AND branch_id = ANY(@branch_ids::text[]) AND grain = 'month' AND start = @month::timestamptz;

-- name: UsageHistory :many
SELECT * FROM usage WHERE project_id = ANY(@project_ids::text[]) AND branch_id = '' AND grain = @grain
    AND start >= @since::timestamptz AND start < @until::timestamptz ORDER BY project_id, start;

-- name: BranchUsageHistory :many
SELECT u.* FROM (SELECT unnest(@project_ids::text[]) AS project_id, unnest(@branch_ids::text[]) AS branch_id) i
JOIN usage u ON u.project_id = i.project_id AND u.branch_id = i.branch_id
WHERE u.grain = @grain AND u.start >= @since::timestamptz AND u.start < @until::timestamptz ORDER BY u.project_id, u.branch_id, u.start;

-- name: ListUsageProjects :many
SELECT id, created_at FROM projects
WHERE NOT deleting AND org_id = ANY(@org_ids::text[]) AND (cardinality(@ids::text[]) = 0 OR id = ANY(@ids::text[]))
  AND (@after_id::text = '' OR (created_at, id) < (@after_created::timestamptz, @after_id::text))
ORDER BY created_at DESC, id DESC LIMIT @max_rows;

-- name: ListUsageBranches :many
SELECT b.id, b.project_id, b.created_at FROM branches b JOIN projects p ON p.id = b.project_id
WHERE NOT b.deleting AND NOT p.deleting AND p.org_id = ANY(@org_ids::text[]) AND b.project_id = ANY(@project_ids::text[])
  AND (cardinality(@ids::text[]) = 0 OR b.id = ANY(@ids::text[]))
  AND (b.project_id, b.id) > (@after_project::text, @after_id::text)
ORDER BY b.project_id, b.id LIMIT @max_rows;

-- name: ListQuotas :many
SELECT p.id, p.settings, coalesce(u.active_us, 0)::bigint AS active_us, coalesce(u.compute_us, 0)::bigint AS compute_us,
    coalesce(u.written_bytes, 0)::bigint AS written_bytes, coalesce(u.transfer_bytes, 0)::bigint AS transfer_bytes
FROM projects p LEFT JOIN usage u ON u.project_id = p.id AND u.branch_id = '' AND u.grain = 'month' AND u.start = @month::timestamptz
WHERE p.id = ANY(@project_ids::text[]) AND NOT p.deleting AND jsonb_exists(p.settings, 'quota');

-- name: ListActiveByProject :many
SELECT e.id, coalesce(b.logical_size, 0)::bigint AS logical_size FROM endpoints e JOIN branches b ON b.id = e.branch_id
WHERE e.project_id = $1 AND e.state = 'active' AND e.pending_state = '' AND NOT e.deleting;

-- name: PruneUsage :execrows
DELETE FROM usage WHERE (grain = 'hour' AND start < @hours::timestamptz) OR (grain = 'day' AND start < @days::timestamptz)
    OR (grain = 'month' AND start < @months::timestamptz);

-- name: PruneMeters :exec
DELETE FROM compute_meters m WHERE NOT EXISTS (SELECT FROM endpoints e WHERE e.id = m.endpoint_id) AND m.seen_at < @before::timestamptz;

-- name: PruneOrphanUsage :execrows
DELETE FROM usage WHERE project_id IN (
    SELECT u.project_id FROM usage u WHERE u.grain = 'month' AND u.start >= @since::timestamptz AND u.branch_id = ''
        AND NOT EXISTS (SELECT FROM projects p WHERE p.id = u.project_id));
