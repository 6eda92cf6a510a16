package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// createLike makes an empty database with the encoding and the locale of another server's.
func createLike(ctx context.Context, from, to *pgx.Conn, name, owner string) error {
	major, err := serverMajor(ctx, from)
	if err != nil {
		return err
	}
	provider, locale, rules := "'c'", "NULL", "NULL"
	if major >= 15 {
		provider, locale = "datlocprovider::text", "daticulocale"
	}
	if major >= 16 {
		rules = "daticurules"
	}
	if major >= 17 {
		locale = "datlocale"
	}
	var encoding, collate, ctype, kind string
	var place, tailoring *string
	err = from.QueryRow(ctx, fmt.Sprintf("SELECT pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text, %s, %s, %s FROM pg_database WHERE datname = $1",
		provider, locale, rules), name).Scan(&encoding, &collate, &ctype, &kind, &place, &tailoring)
	if err != nil {
		return err
	}
	sql := "CREATE DATABASE " + quote(name) + " OWNER " + quote(owner) + " TEMPLATE template0 ENCODING " + literal(encoding) +
		" LC_COLLATE " + literal(collate) + " LC_CTYPE " + literal(ctype)
	if major >= 15 {
		sql += " LOCALE_PROVIDER " + map[string]string{"c": "libc", "i": "icu", "b": "builtin"}[kind]
	}
	switch {
	case place == nil:
	case kind == "i":
		sql += " ICU_LOCALE " + literal(*place)
	case kind == "b":
		sql += " BUILTIN_LOCALE " + literal(*place)
	}
	if tailoring != nil {
		sql += " ICU_RULES " + literal(*tailoring)
	}
	_, err = to.Exec(ctx, sql)
	return err
}

// copyDatabase gives a database what another server's of that name has besides its content: limits, a comment, privileges and
// settings, those of roles in it, too.
func copyDatabase(ctx context.Context, from, to *pgx.Conn, name string) error {
	var limit int32
	var template, granted bool
	var comment *string
	err := from.QueryRow(ctx, "SELECT datconnlimit, datistemplate, datacl IS NOT NULL, shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1", name).
		Scan(&limit, &template, &granted, &comment)
	if err != nil {
		return err
	}
	database := quote(name)
	statements := []string{fmt.Sprintf("ALTER DATABASE %s CONNECTION LIMIT %d", database, limit)}
	if template {
		statements = append(statements, "ALTER DATABASE "+database+" IS_TEMPLATE true")
	}
	if comment != nil {
		statements = append(statements, "COMMENT ON DATABASE "+database+" IS "+literal(*comment))
	}
	if granted {
		grants, err := databaseGrants(ctx, from, name)
		if err != nil {
			return err
		}
		statements = append(statements, grants...)
	}
	for _, sql := range statements {
		if _, err := to.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return copySettings(ctx, from, to, name)
}

// databaseGrants are the statements after which a database has the privileges that another one has: the owner's first, then
// those that somebody passed on.
func databaseGrants(ctx context.Context, from *pgx.Conn, name string) ([]string, error) {
	var owner string
	if err := from.QueryRow(ctx, "SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = $1", name).Scan(&owner); err != nil {
		return nil, err
	}
	rows, err := from.Query(ctx, `SELECT format('GRANT %s ON DATABASE %I TO %s%s', a.privilege_type, d.datname,
			CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
			CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END), a.grantor = d.datdba, quote_ident(pg_get_userbyid(a.grantor))
		FROM pg_database d CROSS JOIN LATERAL aclexplode(d.datacl) a WHERE d.datname = $1 ORDER BY a.grantor = d.datdba DESC, a.is_grantable DESC`, name)
	if err != nil {
		return nil, err
	}
	database := quote(name)
	out := []string{"REVOKE ALL ON DATABASE " + database + " FROM PUBLIC", "REVOKE ALL ON DATABASE " + database + " FROM " + quote(owner)}
	var grant, grantor string
	var own bool
	_, err = pgx.ForEachRow(rows, []any{&grant, &own, &grantor}, func() error {
		if !own { // one transaction
			grant = "BEGIN; SET LOCAL ROLE " + grantor + "; " + grant + "; COMMIT"
		}
		out = append(out, grant)
		return nil
	})
	return out, err
}

// copySettings copies what ALTER DATABASE and ALTER ROLE … SET have set: for one database, or for roles everywhere when its name
// is "". Statements would have to know which settings are lists.
func copySettings(ctx context.Context, from, to *pgx.Conn, database string) error {
	type setting struct {
		Role   string // "" for all
		Values []string
	}
	rows, err := from.Query(ctx, `SELECT coalesce(r.rolname::text, ''), s.setconfig
		FROM pg_db_role_setting s LEFT JOIN pg_authid r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase
		WHERE coalesce(d.datname::text, '') = $1 AND (s.setrole = 0 OR r.oid >= 16384)`, database)
	if err != nil {
		return err
	}
	settings, err := pgx.CollectRows(rows, pgx.RowToStructByPos[setting])
	if err != nil {
		return err
	}
	for _, s := range settings {
		_, err := to.Exec(ctx, `INSERT INTO pg_db_role_setting (setdatabase, setrole, setconfig)
			SELECT coalesce((SELECT oid FROM pg_database WHERE datname = $1), 0), coalesce((SELECT oid FROM pg_authid WHERE rolname = $2), 0), $3`,
			database, s.Role, s.Values)
		if err != nil {
			return fmt.Errorf("settings of role %q in database %q: %w", s.Role, database, err)
		}
	}
	return nil
}
