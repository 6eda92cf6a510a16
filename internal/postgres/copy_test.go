package postgres_test

import (
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/pgtest"
	"github.com/boughdb/bough/internal/postgres"
)

func TestCopyRolesAndDatabases(t *testing.T) { pgtest.Each(t, testCopyRolesAndDatabases) }

func testCopyRolesAndDatabases(t *testing.T, b postgres.Build) {
	from, to := pgtest.NewCluster(t, pgtest.Options{Build: b}).Conn(t, ""), pgtest.NewCluster(t, pgtest.Options{Build: b}).Conn(t, "")
	provider := ""
	if b.Major >= 15 {
		provider = " LOCALE_PROVIDER libc"
	}
	run := func(conn *pgx.Conn, statements ...string) {
		t.Helper()
		for _, sql := range statements {
			if _, err := conn.Exec(t.Context(), sql); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
	}
	run(from, "ALTER ROLE neondb_owner PASSWORD 'one' CONNECTION LIMIT 7",
		"CREATE ROLE \"a 'quoted\"\" role\" NOINHERIT CREATEDB REPLICATION VALID UNTIL 'infinity'", "CREATE ROLE team", "CREATE ROLE lead LOGIN", "CREATE ROLE reader LOGIN",
		"COMMENT ON ROLE team IS 'it''s a group'", "ALTER ROLE reader SET search_path = a, \"b, c\"", "ALTER ROLE ALL SET work_mem = '5MB'",
		// Passed on by somebody who was given the right to.
		"GRANT team TO lead WITH ADMIN OPTION", "GRANT team TO reader GRANTED BY lead",
		"CREATE DATABASE other OWNER lead TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' CONNECTION LIMIT 9"+provider,
		"ALTER DATABASE other SET search_path = x, \"y, z\"", "ALTER ROLE reader IN DATABASE other SET work_mem = '6MB'",
		"COMMENT ON DATABASE other IS 'the other'", "REVOKE CONNECT ON DATABASE other FROM PUBLIC",
		"GRANT CONNECT ON DATABASE other TO team WITH GRANT OPTION", "BEGIN; SET LOCAL ROLE team; GRANT CONNECT ON DATABASE other TO reader; COMMIT")
	run(to, "DROP DATABASE neondb", "DROP ROLE neondb_owner")
	for _, err := range []error{
		postgres.CopyRoles(t.Context(), from, to),
		postgres.CreateLike(t.Context(), from, to, "neondb", "lead"),
		postgres.CreateLike(t.Context(), from, to, "other", "lead"),
		postgres.CopyDatabase(t.Context(), from, to, "other"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, sql := range []string{
		"SELECT format('%s', to_jsonb(r) - 'oid') FROM pg_authid r WHERE oid >= 16384 ORDER BY rolname",
		"SELECT format('%s %s', rolname, shobj_description(oid, 'pg_authid')) FROM pg_roles ORDER BY 1",
		"SELECT format('%s %s %s %s', roleid::regrole, member::regrole, grantor::regrole, to_jsonb(m) - 'oid' - 'roleid' - 'member' - 'grantor') FROM pg_auth_members m ORDER BY 1",
		"SELECT format('%s %s %s', (SELECT datname FROM pg_database d WHERE d.oid = setdatabase), setrole::regrole, setconfig) FROM pg_db_role_setting ORDER BY 1",
		`SELECT format('%s %s %s', datname, shobj_description(oid, 'pg_database'), to_jsonb(d) - 'oid' - 'datdba' - 'datacl' - 'datfrozenxid' - 'datminmxid' - 'datlastsysoid')
			FROM pg_database d WHERE datname IN ('neondb', 'other') ORDER BY 1`,
		"SELECT format('%s %s %s %s', a.grantor::regrole, a.grantee::regrole, a.privilege_type, a.is_grantable) FROM pg_database d, aclexplode(datacl) a WHERE datname = 'other' ORDER BY 1",
	} {
		var got [2][]string
		for i, conn := range []*pgx.Conn{from, to} {
			rows, err := conn.Query(t.Context(), sql)
			if err != nil {
				t.Fatal(err)
			}
			if got[i], err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(got[0], got[1]) {
			t.Errorf("%s:\n%q\nbecame\n%q", sql, got[0], got[1])
		}
	}
}
