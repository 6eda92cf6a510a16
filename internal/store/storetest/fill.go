// Package storetest fills a control database with as many rows as a busy installation has, for tests and measurements: rows
// only, nothing stands behind them.
package storetest

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/boughdb/bough/internal/core"
)

// ProjectID and BranchID name what Fill makes: project n of those asked for, and branch m of that one's. Branch 0 is the root.
const (
	ProjectID = "seeded-project-%08d"
	BranchID  = "br-seeded-%08d-%04d"
)

// fill is run in order. $1 is the organization of the projects, $2 their number, $3 the branches of each.
var fill = []string{
	`INSERT INTO projects (id, org_id, name, region_id, pg_version, provisioner, default_min_cu, default_max_cu, default_suspend, settings,
		store_passwords, history_retention)
	SELECT format('seeded-project-%s', lpad(p::text, 8, '0')), $1, 'project ' || p, 'local', 17, 'k8s-neonvm', 0.25, 2, 0, '{}', true, 86400
	FROM generate_series(0, $2::int - 1) p, (SELECT $3::int) used`,

	`INSERT INTO branches (id, project_id, parent_id, name, state, is_default, init_source, logical_size, created_by_name, volume_id, created_at, updated_at)
	SELECT format('br-seeded-%s-%s', lpad(p::text, 8, '0'), lpad(b::text, 4, '0')), format('seeded-project-%s', lpad(p::text, 8, '0')),
		CASE WHEN b > 0 THEN format('br-seeded-%s-0000', lpad(p::text, 8, '0')) END,
		CASE WHEN b = 0 THEN 'main' ELSE 'branch ' || b END, 'ready', b = 0, 'parent-data', 30000000, 'Seed',
		format('br-seeded-%s-%s', lpad(p::text, 8, '0'), lpad(b::text, 4, '0')),
		now() - interval '1 day' + b * interval '1 minute', now() - interval '1 day' + b * interval '1 minute'
	FROM generate_series(0, $2::int - 1) p, generate_series(0, $3::int - 1) b, (SELECT $1::text) used`,

	`INSERT INTO incarnations (branch_id, number, fork_lsn, begin_lsn, begin_at)
	SELECT b.id, 1, 1, 1, b.created_at FROM branches b, (SELECT $1::text, $2::int, $3::int) used WHERE b.id LIKE 'br-seeded-%'`,

	`UPDATE incarnations i SET parent = p.id FROM branches b, incarnations p, (SELECT $1::text, $2::int, $3::int) used
	WHERE b.id = i.branch_id AND p.branch_id = b.parent_id`,

	`INSERT INTO history_snapshots (incarnation, volume, state, reason)
	SELECT i.id, 'snapshot-' || i.id || '-' || n, 'kept', 'seed' FROM incarnations i, generate_series(1, 3) n, (SELECT $1::text, $2::int, $3::int) used`,

	`INSERT INTO endpoints (id, project_id, branch_id, region_id, type, min_cu, max_cu, provisioner, suspend_timeout, state, suspended_at)
	SELECT replace(b.id, 'br-', 'ep-'), b.project_id, b.id, 'local', 'read_write', 0.25, 2, 'k8s-neonvm', 0, 'idle', now()
	FROM branches b, (SELECT $1::text, $2::int, $3::int) used WHERE b.id LIKE 'br-seeded-%'`,

	`INSERT INTO roles (branch_id, name, verifier)
	SELECT b.id, r, 'SCRAM-SHA-256$4096:c2VlZA==$c2VlZA==:c2VlZA=='
	FROM branches b, unnest(ARRAY['neondb_owner', 'reader']) r, (SELECT $1::text, $2::int, $3::int) used WHERE b.id LIKE 'br-seeded-%'`,

	`INSERT INTO databases (branch_id, name, owner_name)
	SELECT b.id, 'neondb', 'neondb_owner' FROM branches b, (SELECT $1::text, $2::int, $3::int) used WHERE b.id LIKE 'br-seeded-%'`,

	`INSERT INTO operations (id, project_id, branch_id, endpoint_id, action, status, created_at, updated_at, started_at, duration_ms)
	SELECT gen_random_uuid(), b.project_id, b.id, replace(b.id, 'br-', 'ep-'),
		(ARRAY['create_branch', 'start_compute', 'suspend_compute'])[1 + o % 3], 'finished', at, at, at, 100
	FROM branches b, generate_series(0, 9) o, (SELECT $1::text, $2::int, $3::int) used,
		LATERAL (SELECT b.created_at - interval '30 days' + o * interval '3 days' AS at) t
	WHERE b.id LIKE 'br-seeded-%'`,

	`INSERT INTO branch_meters (branch_id, project_id, lsn, written, logical, data, history, hour, hour_logical, hour_data, hour_history)
	SELECT b.id, b.project_id, 100000000, 1000000, 30000000, 1000000, 16000000, date_trunc('hour', now(), 'UTC'), 30000000, 1000000, 16000000
	FROM branches b, (SELECT $1::text, $2::int, $3::int) used WHERE b.id LIKE 'br-seeded-%'`,

	`INSERT INTO usage (project_id, branch_id, grain, start, active_us, compute_us, written_bytes, transfer_bytes, root_byte_hours)
	SELECT project_id, branch_id, g.grain, date_trunc(g.grain, now() - ('1 ' || g.grain)::interval * ago, 'UTC'), 3600000000, 900000000, 1000000, 1000000, 30000000
	FROM (SELECT project_id, id AS branch_id FROM branches WHERE id LIKE 'br-seeded-%' UNION ALL
			SELECT id, '' FROM projects WHERE id LIKE 'seeded-project-%') b,
		unnest(ARRAY['hour', 'day', 'month']) g(grain), generate_series(0, 2) ago, (SELECT $1::text, $2::int, $3::int) used`,

	`INSERT INTO users (id, email, name)
	SELECT 'seeded-user-' || u, 'user' || u || '@example.com', 'User ' || u
	FROM generate_series(1, 10000) u, (SELECT $1::text, $2::int, $3::int) used`,

	`INSERT INTO organizations (id, handle, name)
	SELECT 'org-seeded-' || o, 'org' || o, 'Org ' || o FROM generate_series(1, 1000) o, (SELECT $1::text, $2::int, $3::int) used`,

	`INSERT INTO memberships (org_id, user_id, role)
	SELECT 'org-seeded-' || 1 + u % 1000, 'seeded-user-' || u, 'admin' FROM generate_series(1, 2000) u, (SELECT $1::text, $2::int, $3::int) used`,

	`INSERT INTO api_keys (name, hash, user_id, org_id, project_id)
	SELECT 'key ' || k, sha256(('seeded' || k)::bytea), 'seeded-user-' || k,
		CASE WHEN k % 2 = 0 THEN 'org-seeded-' || 1 + k % 1000 END,
		CASE WHEN k % 4 = 0 THEN format('seeded-project-%s', lpad((k % $2::int)::text, 8, '0')) END
	FROM generate_series(1, 10000) k, (SELECT $1::text, $3::int) used`,

	`INSERT INTO invitations (id, org_id, email, role, invited_by, expires_at, token_hash, accepted_at)
	SELECT 'seeded-invitation-' || i, 'org-seeded-' || 1 + i % 1000, 'guest' || i || '@example.com', 'member', 'seeded-user-1',
		now() + interval '1 day', sha256(('token' || i)::bytea), CASE WHEN i % 10 > 0 THEN now() END
	FROM generate_series(1, 5000) i, (SELECT $1::text, $2::int, $3::int) used`,

	`INSERT INTO project_permissions (id, project_id, email)
	SELECT 'seeded-permission-' || p.id || '-' || i, p.id, 'user' || 1 + abs(hashtext(p.id)) % 1000 + i || '@example.com'
	FROM projects p, generate_series(1, 20) i, (SELECT $1::text, $2::int, $3::int) used WHERE p.id LIKE 'seeded-project-%'`,

	`INSERT INTO transfer_requests (id, project_id, expires_at)
	SELECT 'seeded-transfer-' || p.id || '-' || i, p.id, now() + interval '1 day'
	FROM projects p, generate_series(1, 20) i, (SELECT $1::text, $2::int, $3::int) used WHERE p.id LIKE 'seeded-project-%'`,

	`INSERT INTO jwks (id, project_id, branch_id, jwks_url, provider_name)
	SELECT 'seeded-jwks-' || b.id, b.project_id, b.id, 'https://example.com/jwks.json', 'seed'
	FROM branches b, (SELECT $1::text, $2::int, $3::int) used WHERE b.id LIKE 'br-seeded-%0'`,

	`INSERT INTO answers (key_id, key, request, answer)
	SELECT 100000 + i % 1000, 'key ' || i, '', repeat('x', 1000)::bytea FROM generate_series(1, 5000) i, (SELECT $1::text, $2::int, $3::int) used`,
}

// Fill adds projects with branches, each with an endpoint, two roles, a database and ten operations, to an organization, and
// other organizations with users, keys and invitations beside them; then it has PostgreSQL look at the tables.
func Fill(ctx context.Context, db *pgxpool.Pool, orgID string, projects, branches int) error {
	for _, sql := range fill {
		if _, err := db.Exec(ctx, sql, orgID, projects, branches); err != nil {
			return core.Wrap(err, "storetest.fill", sql)
		}
	}
	_, err := db.Exec(ctx, "VACUUM ANALYZE")
	return core.Wrap(err, "storetest.fill", "")
}
