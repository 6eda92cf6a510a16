package postgres_test

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/boughdb/bough/internal/pgtest"
	"github.com/boughdb/bough/internal/postgres"
)

// owner makes a role like the API does with a database of its own, and connects as it.
func owner(t *testing.T, c *pgtest.Cluster, role, database string) *pgx.Conn {
	t.Helper()
	admin := c.Conn(t, "")
	must(t, postgres.CreateRole(t.Context(), admin, postgres.RoleSpec{Name: role}))
	must(t, postgres.CreateDatabase(t.Context(), admin, database, role))
	return c.UserConn(t, role, database)
}

func collect(t *testing.T, conn *pgx.Conn, sql string) []string {
	t.Helper()
	rows, err := conn.Query(t.Context(), sql)
	must(t, err)
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(t, err)
	return list
}

func state(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}

// view makes a build's view for servers.
func view(t *testing.T, b postgres.Build, dir, allow string) postgres.Build {
	t.Helper()
	list, err := postgres.ParseAllowList(allow)
	must(t, err)
	out, err := postgres.NewOverlays(dir, list, pgtest.Cred(t), slog.New(slog.NewTextHandler(t.Output(), nil))).Build(t.Context(), b)
	must(t, err)
	if !strings.HasPrefix(out.BinDir, dir) {
		t.Fatalf("no view of %s was made", b.BinDir)
	}
	return out
}

func TestOverlay(t *testing.T) {
	b := pgtest.Build(t)
	dir := scratchDir(t)
	c := pgtest.NewCluster(t, pgtest.Options{Build: view(t, b, dir, "default"), Preload: b.PreloadList(true, nil)})
	admin := c.Conn(t, "")
	ann := owner(t, c, "ann", "anns")
	create := func(name string) error {
		_, err := ann.Exec(t.Context(), `CREATE EXTENSION "`+name+`" CASCADE`)
		return err
	}
	list, err := postgres.ParseAllowList("default")
	must(t, err)
	available := collect(t, admin, "SELECT name FROM pg_available_extensions ORDER BY name")
	made := 0
	for _, name := range available {
		if !list.Allows(name) {
			continue
		}
		if err := create(name); err != nil && state(err) != "42710" {
			t.Errorf("%s: %v", name, err)
			continue
		}
		made++
	}
	if made < 15 {
		t.Errorf("only %d of the default list are there: %v", made, available)
	}
	if err := create("file_fdw"); state(err) != "42501" {
		t.Errorf("file_fdw: %v", err)
	}
	// What is granted behind the scripts.
	for _, sql := range []string{
		"SELECT count(*) FROM pg_stat_statements", "SELECT pg_stat_statements_reset()",
		"CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'localhost')", "SELECT * FROM pg_buffercache LIMIT 1",
	} {
		if _, err := ann.Exec(t.Context(), sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	if owner := query[string](t, admin, "SELECT rolname FROM pg_extension e JOIN pg_roles r ON r.oid = extowner WHERE extname = 'plpgsql'"); owner != postgres.AdminRole {
		t.Errorf("plpgsql belongs to %s", owner)
	}

	// A new list takes effect under a running server; the next one says none.
	view(t, b, dir, "default,file_fdw")
	if err := create("file_fdw"); err != nil {
		t.Errorf("file_fdw once it is allowed: %v", err)
	}
	view(t, b, dir, "none")
	if _, err := ann.Exec(t.Context(), "DROP EXTENSION bloom"); err != nil {
		t.Error(err)
	}
	if err := create("bloom"); state(err) != "42501" {
		t.Errorf("bloom although nothing is allowed: %v", err)
	}
	if _, err := postgres.ParseAllowList("default,../../etc"); err == nil {
		t.Error("a path passes for an extension")
	}
}

// TestNoEscape tries the ways from SQL to the bootstrap superuser and to the machine that allowed extensions might open.
func TestNoEscape(t *testing.T) {
	b := pgtest.Build(t)
	c := pgtest.NewCluster(t, pgtest.Options{Build: view(t, b, scratchDir(t), "all")})
	admin := c.Conn(t, "")
	eve := owner(t, c, "eve", "eves")
	exec := func(sql string) error {
		_, err := eve.Exec(t.Context(), sql)
		return err
	}
	for _, name := range []string{"dblink", "postgres_fdw", "file_fdw", "adminpack", "pageinspect", "pg_surgery", "amcheck", "plpython3u", "plperlu"} {
		if query[bool](t, admin, "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = $1)", name) {
			if err := exec("CREATE EXTENSION " + name); err != nil {
				t.Logf("%s: %v", name, err) // an interpreter that is not installed
			}
		}
	}
	socket := "host=" + c.SocketDir + " port=5432 dbname=eves "
	for name, sql := range map[string]string{
		"dblink as the superuser":           "SELECT * FROM dblink('" + socket + "user=cloud_admin', 'SELECT 1') AS t(a int)",
		"dblink with a password for show":   "SELECT * FROM dblink('" + socket + "user=cloud_admin password=x', 'SELECT 1') AS t(a int)",
		"dblink as oneself":                 "SELECT * FROM dblink('" + socket + "user=eve password=x', 'SELECT 1') AS t(a int)",
		"dblink's unsafe connect":           "SELECT dblink_connect_u('" + socket + "user=cloud_admin')",
		"a foreign table of the superuser":  "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '" + c.SocketDir + "', dbname 'eves'); CREATE USER MAPPING FOR eve SERVER s OPTIONS (user 'cloud_admin', password 'x'); CREATE FOREIGN TABLE ft (rolname name, rolpassword text) SERVER s OPTIONS (schema_name 'pg_catalog', table_name 'pg_authid'); SELECT * FROM ft",
		"a mapping without a password":      "ALTER USER MAPPING FOR eve SERVER s OPTIONS (ADD password_required 'false')",
		"a file by file_fdw":                "CREATE SERVER f FOREIGN DATA WRAPPER file_fdw",
		"a program":                         "COPY (SELECT 1) TO PROGRAM 'id'",
		"a file":                            "COPY (SELECT 1) TO '/tmp/bough-escape'",
		"reading a file":                    "SELECT pg_read_file('postgresql.conf')",
		"a function of an extension":        "ALTER FUNCTION dblink_connect_u(text) OWNER TO eve",
		"taking a function out":             "ALTER EXTENSION dblink DROP FUNCTION dblink_connect_u(text)",
		"granting it":                       "GRANT EXECUTE ON FUNCTION dblink_connect_u(text) TO eve",
		"becoming the superuser":            "SET ROLE cloud_admin",
		"membership of the superuser":       "GRANT cloud_admin TO eve",
		"a function that runs as superuser": "CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'; ALTER FUNCTION f() OWNER TO cloud_admin",
		"the server's configuration":        "ALTER SYSTEM SET work_mem = '1GB'",
		"an untrusted language":             "CREATE FUNCTION g() RETURNS int LANGUAGE plpython3u AS 'return 1'",
		"a module by its path":              "CREATE FUNCTION h() RETURNS int LANGUAGE c AS '/lib/x86_64-linux-gnu/libc.so.6', 'system'",
		"loading a module":                  "LOAD '/lib/x86_64-linux-gnu/libc.so.6'",
		"surgery":                           "SELECT heap_force_kill('pg_class'::regclass, ARRAY['(0,1)'::tid])",
		"pages":                             "SELECT get_raw_page('pg_authid', 0)",
	} {
		if err := exec(sql); err == nil {
			t.Errorf("%s: nothing stopped it: %s", name, sql)
		}
	}
	if e, ok := errors.AsType[*pgconn.PgError](exec("SELECT dblink_connect('" + socket + "user=cloud_admin password=x')")); pgtest.Cred(t) != nil &&
		(!ok || !strings.Contains(e.Detail, "Peer authentication failed")) {
		t.Errorf("a session of the superuser was opened from inside before it was refused: %v", e)
	}
	// A script that is planted in the caller's schema: operators and functions that fit better than PostgreSQL's own.
	must(t, exec(`CREATE SCHEMA trap;
		CREATE TABLE trap.caught (who name);
		CREATE FUNCTION trap.spring(name, text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN INSERT INTO trap.caught VALUES (current_user); RETURN true; END $$;
		CREATE OPERATOR trap.= (LEFTARG = name, RIGHTARG = text, FUNCTION = trap.spring);
		CREATE FUNCTION trap.abs(numeric) RETURNS numeric LANGUAGE plpgsql AS $$ BEGIN INSERT INTO trap.caught VALUES (current_user); RETURN 1; END $$`))
	for _, name := range collect(t, admin, "SELECT name FROM pg_available_extensions ORDER BY name") {
		if err := exec(`CREATE EXTENSION IF NOT EXISTS "` + name + `" SCHEMA trap CASCADE`); err != nil {
			t.Logf("%s: %v", name, err)
		}
	}
	if n := query[int](t, c.Conn(t, "eves"), "SELECT count(*) FROM trap.caught WHERE who <> 'eve'"); n > 0 {
		t.Errorf("%d times a planted function ran as somebody else", n)
	}
	if query[bool](t, admin, "SELECT rolsuper FROM pg_roles WHERE rolname = 'eve'") {
		t.Error("eve is a superuser")
	}
}
