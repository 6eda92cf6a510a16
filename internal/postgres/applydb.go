package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
)

// databaseExists looks a database up by its exact name.
func databaseExists(ctx context.Context, conn *pgx.Conn, name string) (bool, error) {
	var ok bool
	err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&ok)
	return ok, err
}

// endSessions ends every session in a database. A session that outlives it by seconds is left to the caller's command,
// which waits and then refuses.
func endSessions(ctx context.Context, conn *pgx.Conn, database string) error {
	_, err := conn.Exec(ctx, `SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity
		WHERE datname = $1 AND pid <> pg_backend_pid()`, database)
	return err
}

const inUseAttempts = 3

// retryInUse runs f until it no longer fails because somebody else is in the database.
func retryInUse(ctx context.Context, conn *pgx.Conn, database string, f func() error) error {
	var err error
	for range inUseAttempts {
		if err = endSessions(ctx, conn, database); err != nil {
			return err
		}
		if err = f(); sqlState(err) != stateObjectInUse {
			return err
		}
	}
	return err
}

// CreateDatabase makes a database, or gives an existing one of that name to owner.
func CreateDatabase(ctx context.Context, conn *pgx.Conn, name, owner string) error {
	const op = "postgres.create_database"
	if err := checkDatabase(name); err != nil {
		return err
	}
	if err := checkName("role", owner); err != nil {
		return err
	}
	exists, err := databaseExists(ctx, conn, name)
	if err != nil {
		return applyError(err, op)
	}
	if !exists {
		// A copy of template1 fails while somebody is connected to it.
		err := retryInUse(ctx, conn, "template1", func() error {
			_, err := conn.Exec(ctx, "CREATE DATABASE "+quote(name)+" OWNER "+quote(owner))
			return err
		})
		switch sqlState(err) {
		case stateDuplicateDatabase, stateUniqueViolation:
			exists = true
		default:
			if err != nil {
				return applyError(err, op)
			}
		}
	}
	if exists {
		if err := SetDatabaseOwner(ctx, conn, name, owner); err != nil {
			return err
		}
	}
	// Roles made through the API may use each other's databases: create schemas and trusted extensions in them.
	_, err = conn.Exec(ctx, "GRANT ALL PRIVILEGES ON DATABASE "+quote(name)+" TO "+quote(GroupRole))
	return applyError(err, op)
}

// SetDatabaseOwner gives a database to another role. The public schema follows it: through pg_database_owner, or explicitly
// when it belongs to the old owner by name.
func SetDatabaseOwner(ctx context.Context, conn *pgx.Conn, name, owner string) error {
	const op = "postgres.set_database_owner"
	if err := checkDatabase(name); err != nil {
		return err
	}
	if err := checkRole(owner); err != nil {
		return err
	}
	var old string
	err := conn.QueryRow(ctx, "SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = $1", name).Scan(&old)
	if errors.Is(err, pgx.ErrNoRows) {
		return core.NotFoundf("database %q does not exist", name)
	} else if err != nil {
		return applyError(err, op)
	}
	// The schema first: were the order the other way round, a second run could not tell who the old owner was.
	if old != owner {
		err = withDatabase(ctx, conn, name, func(c *pgx.Conn) error {
			var schemaOwner string
			err := c.QueryRow(ctx, "SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = 'public'").Scan(&schemaOwner)
			if errors.Is(err, pgx.ErrNoRows) || (err == nil && schemaOwner != old && schemaOwner != AdminRole) {
				return nil
			} else if err != nil {
				return err
			}
			_, err = c.Exec(ctx, "ALTER SCHEMA public OWNER TO "+quote(owner))
			return err
		})
		if err != nil {
			return applyError(err, op)
		}
	}
	_, err = conn.Exec(ctx, "ALTER DATABASE "+quote(name)+" OWNER TO "+quote(owner))
	return applyError(err, op)
}

// RenameDatabase ends a database's sessions and renames it. It has happened already when only the new name exists.
func RenameDatabase(ctx context.Context, conn *pgx.Conn, from, to string) error {
	const op = "postgres.rename_database"
	for _, name := range []string{from, to} {
		if err := checkDatabase(name); err != nil {
			return err
		}
	}
	if from == to {
		return nil
	}
	fromExists, err := databaseExists(ctx, conn, from)
	if err != nil {
		return applyError(err, op)
	}
	toExists, err := databaseExists(ctx, conn, to)
	if err != nil {
		return applyError(err, op)
	}
	switch {
	case fromExists && toExists:
		return core.Errorf(core.KindConflict, "", "database %q already exists", to)
	case !fromExists && !toExists:
		return core.NotFoundf("database %q does not exist", from)
	case !fromExists:
		return nil
	}
	err = whileClosed(ctx, conn, from, func() error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "ALTER DATABASE "+quote(from)+" RENAME TO "+quote(to)); err != nil {
				return err
			}
			// In the same transaction: a database under its new name is never found closed.
			_, err := tx.Exec(ctx, "ALTER DATABASE "+quote(to)+" ALLOW_CONNECTIONS true")
			return err
		})
	})
	return applyError(err, op)
}

// DropDatabase ends a database's sessions and drops it. One that does not exist is dropped already.
func DropDatabase(ctx context.Context, conn *pgx.Conn, name string) error {
	const op = "postgres.drop_database"
	if err := checkDatabase(name); err != nil {
		return err
	}
	exists, err := databaseExists(ctx, conn, name)
	if err != nil || !exists {
		return applyError(err, op)
	}
	err = whileClosed(ctx, conn, name, func() error {
		_, err := conn.Exec(ctx, "DROP DATABASE IF EXISTS "+quote(name)+" WITH (FORCE)")
		return err
	})
	return applyError(err, op)
}

// whileClosed keeps new sessions out of a database, ends those in it and runs f. When f fails the database is opened again.
func whileClosed(ctx context.Context, conn *pgx.Conn, name string, f func() error) error {
	_, err := conn.Exec(ctx, "ALTER DATABASE "+quote(name)+" ALLOW_CONNECTIONS false")
	// A database whose deletion was cut off can only be dropped, and lets nobody in.
	if err != nil && sqlState(err) != stateNotInPrerequisite {
		return err
	}
	if err = retryInUse(ctx, conn, name, f); err == nil {
		return nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_, _ = conn.Exec(undo, "ALTER DATABASE "+quote(name)+" ALLOW_CONNECTIONS true")
	return err
}
