package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Bootstrap fills a fresh cluster with what every project starts from: the group role GroupRole, the login role DefaultOwner
// and its database DefaultDatabase. conn is a session of the bootstrap superuser AdminRole. Running it again changes
// nothing.
func Bootstrap(ctx context.Context, conn *pgx.Conn) error {
	const op = "postgres.bootstrap"
	major, err := serverMajor(ctx, conn)
	if err != nil {
		return applyError(err, op)
	}
	if err := createGroup(ctx, conn, major); err != nil {
		return applyError(err, op)
	}
	// From major 15 on the public schema of a new database belongs to its owner through pg_database_owner. Majors that have
	// the role but not the habit get it here, so that ownership follows the database everywhere.
	if major < 15 {
		err := withDatabase(ctx, conn, "template1", func(t *pgx.Conn) error {
			_, err := t.Exec(ctx, "ALTER SCHEMA public OWNER TO pg_database_owner")
			return err
		})
		if err != nil {
			return applyError(err, op)
		}
	}
	if err := CreateRole(ctx, conn, RoleSpec{Name: DefaultOwner}); err != nil {
		return err
	}
	return CreateDatabase(ctx, conn, DefaultDatabase, DefaultOwner)
}

// createGroup makes the role group that stands in for a superuser. Attributes are not inherited by members: CreateRole gives
// them to each.
func createGroup(ctx context.Context, conn *pgx.Conn, major int) error {
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", GroupRole).Scan(&exists); err != nil {
		return err
	}
	group := quote(GroupRole)
	if !exists {
		if _, err := conn.Exec(ctx, "CREATE ROLE "+group+" CREATEDB CREATEROLE REPLICATION BYPASSRLS NOLOGIN"); err != nil {
			return err
		}
	}
	grants := []string{
		"GRANT pg_read_all_data, pg_write_all_data TO " + group,
		"GRANT pg_monitor, pg_signal_backend TO " + group + " WITH ADMIN OPTION",
	}
	if major >= 16 {
		grants = append(grants, "GRANT pg_create_subscription TO "+group)
	}
	for _, sql := range grants {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// serverMajor asks for the server's major version.
func serverMajor(ctx context.Context, conn *pgx.Conn) (int, error) {
	var num int
	if err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::int").Scan(&num); err != nil {
		return 0, fmt.Errorf("server version: %w", err)
	}
	return num / 10000, nil
}
