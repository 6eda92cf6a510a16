package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// literal makes a value safe to put into SQL; standard_conforming_strings is on in the platform's sessions.
func literal(v string) string { return "'" + strings.ReplaceAll(v, "'", "''") + "'" }

// serverMessage is what the server said.
func serverMessage(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Message
	}
	return "the server broke off"
}

// copyRoles gives a fresh cluster another one's roles: attributes, passwords, memberships, settings and comments. The group role
// is there already.
func copyRoles(ctx context.Context, from, to *pgx.Conn) error {
	statements, err := roleStatements(ctx, from)
	if err != nil {
		return err
	}
	for _, sql := range statements {
		if _, err := to.Exec(ctx, sql); err != nil {
			return fmt.Errorf("copy a role: %w", err) // the statement may hold a verifier
		}
	}
	if err := copyMemberships(ctx, from, to); err != nil {
		return err
	}
	return copySettings(ctx, from, to, "")
}

// roleStatements makes the roles, without what they are to each other.
func roleStatements(ctx context.Context, from *pgx.Conn) ([]string, error) {
	type role struct {
		Name                                                             string
		Super, Inherit, CreateRole, CreateDB, Login, Replication, Bypass bool
		Limit                                                            int32
		Password, Until, Comment                                         *string
	}
	rows, err := from.Query(ctx, `SELECT rolname::text, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls,
		rolconnlimit, rolpassword, rolvaliduntil::text, shobj_description(oid, 'pg_authid') FROM pg_authid WHERE oid >= 16384 ORDER BY oid`)
	if err != nil {
		return nil, err
	}
	roles, err := pgx.CollectRows(rows, pgx.RowToStructByPos[role])
	if err != nil {
		return nil, err
	}
	var out []string
	for _, r := range roles {
		if ReservedRole(r.Name) {
			continue
		}
		sql := "CREATE ROLE " + quote(r.Name)
		for _, a := range []struct {
			has  bool
			name string
		}{{r.Super, "SUPERUSER"}, {r.Inherit, "INHERIT"}, {r.CreateRole, "CREATEROLE"}, {r.CreateDB, "CREATEDB"}, {r.Login, "LOGIN"},
			{r.Replication, "REPLICATION"}, {r.Bypass, "BYPASSRLS"}} {
			if a.has {
				sql += " " + a.name
			} else {
				sql += " NO" + a.name
			}
		}
		sql += fmt.Sprintf(" CONNECTION LIMIT %d", r.Limit)
		if r.Password != nil {
			sql += " PASSWORD " + literal(*r.Password)
		}
		if r.Until != nil {
			sql += " VALID UNTIL " + literal(*r.Until)
		}
		out = append(out, sql)
		if r.Comment != nil {
			out = append(out, "COMMENT ON ROLE "+quote(r.Name)+" IS "+literal(*r.Comment))
		}
	}
	return out, nil
}

// copyMemberships grants roles to roles. From major 16 on a grantor must have been granted the right to first, so it goes
// round until all is granted.
func copyMemberships(ctx context.Context, from, to *pgx.Conn) error {
	major, err := serverMajor(ctx, from)
	if err != nil {
		return err
	}
	options := "CASE WHEN admin_option THEN ' WITH ADMIN OPTION' ELSE '' END"
	if major >= 16 {
		options = "format(' WITH ADMIN %s, INHERIT %s, SET %s', admin_option::text, inherit_option::text, set_option::text)"
	}
	rows, err := from.Query(ctx, `SELECT format('GRANT %I TO %I', pg_get_userbyid(roleid), pg_get_userbyid(member)) || `+options+`
			|| format(' GRANTED BY %I', coalesce((SELECT rolname FROM pg_authid WHERE oid = grantor), '`+AdminRole+`'))
		FROM pg_auth_members ORDER BY roleid, member`)
	if err != nil {
		return err
	}
	left, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for len(left) > 0 {
		var refused []string
		var last error
		for _, sql := range left {
			if _, err := to.Exec(ctx, sql); err != nil {
				refused, last = append(refused, sql), fmt.Errorf("%s: %w", sql, err)
			}
		}
		if len(refused) == len(left) {
			return last
		}
		left = refused
	}
	return nil
}
