package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
)

// The functions below change roles and databases. Each can run again after it was cut off at any point or has already
// succeeded. conn is a session of AdminRole in AdminDatabase.

// RoleSpec is a role to be made.
type RoleSpec struct {
	Name     string
	Verifier string // SCRAM-SHA-256 verifier; "" for no password
	NoLogin  bool
}

// roleExists looks a role up by its exact name.
func roleExists(ctx context.Context, conn *pgx.Conn, name string) (bool, error) {
	var ok bool
	err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", name).Scan(&ok)
	return ok, err
}

func passwordClause(verifier string) string {
	if verifier == "" {
		return " PASSWORD NULL"
	}
	return " PASSWORD '" + verifier + "'" // checkVerifier left nothing to quote
}

// CreateRole makes a role that is a member of GroupRole with the group's attributes, or brings an existing one to that.
func CreateRole(ctx context.Context, conn *pgx.Conn, spec RoleSpec) error {
	const op = "postgres.create_role"
	if err := checkRole(spec.Name); err != nil {
		return err
	}
	if err := checkVerifier(spec.Verifier); err != nil {
		return err
	}
	major, err := serverMajor(ctx, conn)
	if err != nil {
		return applyError(err, op)
	}
	exists, err := roleExists(ctx, conn, spec.Name)
	if err != nil {
		return applyError(err, op)
	}
	name := quote(spec.Name)
	if !exists {
		_, err := conn.Exec(ctx, "CREATE ROLE "+name)
		if s := sqlState(err); err != nil && s != stateDuplicateObject && s != stateUniqueViolation {
			return applyError(err, op)
		}
	}
	login := " LOGIN"
	if spec.NoLogin {
		login = " NOLOGIN"
	}
	sql := "ALTER ROLE " + name + login + " INHERIT CREATEDB CREATEROLE REPLICATION BYPASSRLS" + passwordClause(spec.Verifier)
	if _, err := conn.Exec(ctx, sql); err != nil {
		return applyError(err, op)
	}
	// Up to major 15 CREATEROLE alone lets a role pass its memberships on; from 16 on that takes the admin option.
	grant := "GRANT " + quote(GroupRole) + " TO " + name
	if major >= 16 {
		grant += " WITH ADMIN TRUE, INHERIT TRUE, SET TRUE"
	}
	_, err = conn.Exec(ctx, grant)
	return applyError(err, op)
}

// SetRoleVerifier replaces a role's password; "" removes it.
func SetRoleVerifier(ctx context.Context, conn *pgx.Conn, name, verifier string) error {
	if err := checkRole(name); err != nil {
		return err
	}
	if err := checkVerifier(verifier); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, "ALTER ROLE "+quote(name)+passwordClause(verifier))
	return applyError(err, "postgres.set_role_verifier")
}

// RenameRole renames a role. It has happened already when only the new name exists.
func RenameRole(ctx context.Context, conn *pgx.Conn, from, to string) error {
	const op = "postgres.rename_role"
	for _, name := range []string{from, to} {
		if err := checkRole(name); err != nil {
			return err
		}
	}
	if from == to {
		return nil
	}
	_, err := conn.Exec(ctx, "ALTER ROLE "+quote(from)+" RENAME TO "+quote(to))
	if sqlState(err) == stateUndefinedObject {
		if done, lookErr := roleExists(ctx, conn, to); lookErr == nil && done {
			return nil
		}
	}
	return applyError(err, op)
}

// DropRole ends a role's sessions and drops it. What it owns goes to the owner of the database that holds it; its privileges
// go away. A role that owns a database is refused. A role that does not exist is dropped already.
func DropRole(ctx context.Context, conn *pgx.Conn, name string) error {
	const op = "postgres.drop_role"
	if err := checkRole(name); err != nil {
		return err
	}
	exists, err := roleExists(ctx, conn, name)
	if err != nil || !exists {
		return applyError(err, op)
	}
	var owned string
	err = conn.QueryRow(ctx, `SELECT coalesce(min(datname::text), '') FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba
		WHERE r.rolname = $1`, name).Scan(&owned)
	if err != nil {
		return applyError(err, op)
	}
	if owned != "" {
		return core.Errorf(core.KindUnprocessable, "", "role %q owns database %q; give the database another owner first", name, owned)
	}
	role := quote(name)
	if _, err := conn.Exec(ctx, "ALTER ROLE "+role+" NOLOGIN"); err != nil {
		return applyError(err, op)
	}
	if _, err := conn.Exec(ctx, "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = $1", name); err != nil {
		return applyError(err, op)
	}

	// Objects must never fall to a superuser: a SECURITY DEFINER function would become one too.
	rows, err := conn.Query(ctx, `SELECT d.datname::text, CASE WHEN r.rolsuper THEN $1 ELSE r.rolname::text END
		FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba WHERE d.datallowconn AND d.datconnlimit <> -2`, GroupRole)
	if err != nil {
		return applyError(err, op)
	}
	heirs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[CatalogDatabase])
	if err != nil {
		return applyError(err, op)
	}
	for _, db := range heirs {
		err := withDatabase(ctx, conn, db.Name, func(c *pgx.Conn) error {
			if _, err := c.Exec(ctx, "REASSIGN OWNED BY "+role+" TO "+quote(db.Owner)); err != nil {
				return err
			}
			_, err := c.Exec(ctx, "DROP OWNED BY "+role)
			return err
		})
		if err != nil {
			return applyError(err, op)
		}
	}
	_, err = conn.Exec(ctx, "DROP ROLE IF EXISTS "+role)
	return applyError(err, op)
}
