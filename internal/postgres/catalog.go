package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
)

// CatalogRole is a role as the server has it.
type CatalogRole struct {
	Name     string
	CanLogin bool
	Verifier string // pg_authid.rolpassword; "" when there is none
}

// CatalogDatabase is a database as the server has it.
type CatalogDatabase struct {
	Name  string
	Owner string
}

// Catalog is what users see of a server's roles and databases, sorted by name.
type Catalog struct {
	Roles     []CatalogRole
	Databases []CatalogDatabase
}

// ReadCatalog lists roles and databases without PostgreSQL's and the platform's own. A database whose deletion was cut off
// (datconnlimit -2) does not count as one.
func ReadCatalog(ctx context.Context, conn *pgx.Conn) (Catalog, error) {
	const op = "postgres.read_catalog"
	var c Catalog
	rows, err := conn.Query(ctx, `SELECT rolname::text, rolcanlogin, coalesce(rolpassword, '') FROM pg_authid ORDER BY rolname::text COLLATE "C"`)
	if err != nil {
		return Catalog{}, core.Wrap(err, op, "")
	}
	roles, err := pgx.CollectRows(rows, pgx.RowToStructByPos[CatalogRole])
	if err != nil {
		return Catalog{}, core.Wrap(err, op, "")
	}
	for _, r := range roles {
		if !ReservedRole(r.Name) {
			c.Roles = append(c.Roles, r)
		}
	}
	rows, err = conn.Query(ctx, `SELECT datname::text, pg_get_userbyid(datdba)::text FROM pg_database
		WHERE NOT datistemplate AND datconnlimit <> -2 ORDER BY datname::text COLLATE "C"`)
	if err != nil {
		return Catalog{}, core.Wrap(err, op, "")
	}
	databases, err := pgx.CollectRows(rows, pgx.RowToStructByPos[CatalogDatabase])
	if err != nil {
		return Catalog{}, core.Wrap(err, op, "")
	}
	for _, d := range databases {
		if !ReservedDatabase(d.Name) {
			c.Databases = append(c.Databases, d)
		}
	}
	return c, nil
}

const fingerprintSQL = `encode(sha256(convert_to(
	coalesce((SELECT string_agg(format('%L %L %L %L', oid, rolname, rolcanlogin, rolpassword), ',' ORDER BY oid) FROM pg_authid), '') || ';' ||
	coalesce((SELECT string_agg(format('%L %L %L %L %L', oid, datname, datdba, datistemplate, datconnlimit = -2), ',' ORDER BY oid) FROM pg_database), ''),
	'UTF8')), 'hex')`

// Fingerprint is a value that changes whenever what ReadCatalog would return changes. It is computed in the server, so
// verifiers do not travel.
func Fingerprint(ctx context.Context, conn *pgx.Conn) (string, error) {
	var f string
	err := conn.QueryRow(ctx, "SELECT "+fingerprintSQL).Scan(&f)
	return f, core.Wrap(err, "postgres.fingerprint", "")
}

// ReadVerifier returns the password verifier of one role, "" for a role that does not exist, may not log in, has no
// password or one that has expired.
func ReadVerifier(ctx context.Context, conn *pgx.Conn, role string) (string, error) {
	var verifier string
	err := conn.QueryRow(ctx, `SELECT rolpassword FROM pg_authid WHERE rolname = $1 AND rolcanlogin AND rolpassword IS NOT NULL
		AND (rolvaliduntil IS NULL OR rolvaliduntil > now())`, role).Scan(&verifier)
	if errors.Is(err, pgx.ErrNoRows) || ReservedRole(role) {
		return "", nil
	}
	return verifier, core.Wrap(err, "postgres.read_verifier", "")
}
