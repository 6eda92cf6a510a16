package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
)

// Activity is how much a server is used by others than the platform.
type Activity struct {
	Active      bool      // a client backend is not idle, a walsender is connected or a subscription runs
	LastActive  time.Time // now when Active; else when the latest idle session became idle; zero when unknown
	Connections int       // client sessions, walsenders included
	Sessions    int64     // sessions ever started in users' databases; a change means someone came since the last look
	Fingerprint string    // as Fingerprint gives it
	LSN         core.LSN  // where the durable WAL ends; 0 in recovery
}

// Sessions that came and went between two looks leave no row in pg_stat_activity, so the counter of pg_stat_database is
// read too. The platform's own regular sessions are in AdminDatabase, which is not counted.
const activitySQL = `SELECT
	coalesce(bool_or(CASE
		WHEN backend_type = 'client backend' THEN state IS DISTINCT FROM 'idle'
		ELSE true END), false),
	max(state_change) FILTER (WHERE backend_type = 'client backend'),
	count(*) FILTER (WHERE backend_type IN ('client backend', 'walsender')),
	(SELECT coalesce(sum(sessions), 0)::bigint FROM pg_stat_database
		WHERE datname IS NOT NULL AND datname NOT IN ('` + AdminDatabase + `', 'template0', 'template1')),
	` + fingerprintSQL + `,
	CASE WHEN pg_is_in_recovery() THEN 0 ELSE (pg_current_wal_flush_lsn() - '0/0')::bigint END
FROM pg_stat_activity
WHERE backend_type LIKE 'logical replication%worker'
	OR (backend_type IN ('client backend', 'walsender') AND usename IS DISTINCT FROM '` + AdminRole + `')`

// ReadActivity looks at the server once. Sessions of AdminRole do not count.
func ReadActivity(ctx context.Context, conn *pgx.Conn) (Activity, error) {
	var a Activity
	var last *time.Time
	if err := conn.QueryRow(ctx, activitySQL).Scan(&a.Active, &last, &a.Connections, &a.Sessions, &a.Fingerprint, &a.LSN); err != nil {
		return Activity{}, core.Wrap(err, "postgres.read_activity", "")
	}
	switch {
	case a.Active:
		a.LastActive = time.Now()
	case last != nil:
		a.LastActive = *last
	}
	return a, nil
}

// LogicalSize is the sum of all databases' sizes in bytes. It reads every file's size: not for frequent use.
func LogicalSize(ctx context.Context, conn *pgx.Conn) (int64, error) {
	var n int64
	err := conn.QueryRow(ctx, "SELECT coalesce(sum(pg_database_size(oid)), 0)::bigint FROM pg_database").Scan(&n)
	return n, core.Wrap(err, "postgres.logical_size", "")
}
