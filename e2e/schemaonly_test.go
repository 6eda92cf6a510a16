package e2e

import (
	"bytes"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/sdk"
)

// marker is in every row that a schema-only branch must not have.
const marker = "row-7f3a9c-of-the-parent"

// schemaOnly makes a schema-only branch of the default branch.
func (p *project) schemaOnly(t *testing.T, source string) *sdk.BranchCreated {
	t.Helper()
	made, err := p.s.CreateBranch(t.Context(), p.ID, sdk.BranchCreateRequest{
		Branch: &sdk.BranchCreate{InitSource: new("schema-only"), ParentID: &source}, Endpoints: readWrite(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// in is a URI's with another database.
func in(t *testing.T, uri, database string) string {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + database
	return u.String()
}

// as is a URI's with another role.
func as(t *testing.T, uri, role, password string) string {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, password)
	return u.String()
}

func TestSchemaOnlyBranch(t *testing.T) {
	s := start(t)
	p := schemaProject(t, s)
	ops, err := s.CreateRole(t.Context(), p.ID, p.Branch, sdk.RoleCreate{Name: "keeper of books"})
	if err != nil {
		t.Fatal(err)
	}
	keeper := *ops.Role.Password
	made, err := s.CreateDatabase(t.Context(), p.ID, p.Branch, sdk.DatabaseCreate{Name: "it's a \"library\"", OwnerName: "keeper of books"})
	if err != nil {
		t.Fatal(err)
	}
	s.wait(t, made.Operations)

	parent := s.connect(t, p.URI)
	for _, statement := range []string{
		"create role team nologin", "create role reader login password 'made in SQL' connection limit 3 valid until '2040-01-01'",
		"grant team to reader", "alter role reader set search_path = app, \"odd, name\", public", "comment on role team is 'a group'",
		"grant team to " + p.Role + " with admin option",
		"create extension hstore", "create schema ext", "create extension pgcrypto schema ext",
		"create schema app authorization " + p.Role, "create schema \"odd, name\"",
		"comment on schema app is 'of the application'", "grant usage on schema app to team",
		"alter default privileges in schema app grant select on tables to team",
		"create type app.mood as enum ('good', 'bad')", "create domain app.code as text check (value ~ '^[a-z]+$')",
		"create type app.span as range (subtype = float8)", "create type app.pair as (a int, b text)",
		"create table app.people (id int generated always as identity, serial_id serial, name text not null, mood app.mood, tags hstore, code app.code, primary key (id))",
		"create table app.events (at date, what text) partition by range (at)",
		"create table app.events_2030 partition of app.events for values from ('2030-01-01') to ('2031-01-01')",
		"create index on app.people (lower(name)) where mood = 'good'", "create statistics app.together on name, mood from app.people",
		"alter table app.people enable row level security", "create policy own on app.people using (name = current_user)",
		"grant select (name), insert on app.people to reader", "comment on column app.people.name is 'it''s a name'",
		"create view app.names as select name from app.people", "create materialized view app.counts as select count(*) from app.people",
		"create function app.touch() returns trigger language plpgsql security definer as $$ begin new.name := upper(new.name); return new; end $$",
		"create trigger touch before insert on app.people for each row execute function app.touch()",
		"create procedure app.work(n int) language sql as $$ select n $$",
		"create aggregate app.total(int) (sfunc = int4pl, stype = int, initcond = '0')",
		"create operator app.=== (leftarg = int, rightarg = int, function = int4eq)",
		"create publication changes for table app.people",
		"create table app.team_owned (n int)", "grant create on schema app to team", "alter table app.team_owned owner to team",
		"insert into app.people (name, code) values ('" + marker + "', 'abc')",
		"insert into app.events select '2030-06-01', '" + marker + "' from generate_series(1, 2000)",
		"select lo_from_bytea(0, '" + marker + "')", "analyze", "refresh materialized view app.counts",
		"alter database " + p.Database + " set statement_timeout = '17min'",
		"alter role reader in database " + p.Database + " set work_mem = '5MB'",
		"comment on database " + p.Database + " is 'the first'",
		// What PostgreSQL calls when a table is defined must not run as a superuser.
		"create function app.volatile_evil() returns int language plpgsql as $$ begin if (select rolsuper from pg_roles where rolname = current_user) then " +
			"execute 'alter role reader superuser'; end if; return 1; end $$",
		"create function app.evil(n int) returns int immutable language plpgsql as $$ begin return app.volatile_evil(); end $$",
		"create table app.trap (n int, m int generated always as (n + app.evil(1)) stored)",
		"create table app.trap2 (n int) partition by range ((n + app.evil(1)))",
	} {
		sql(t, parent, statement)
	}
	library := s.connect(t, as(t, in(t, p.URI, "it's a \"library\""), "keeper of books", keeper))
	sql(t, library, "create table books (title text primary key)")
	sql(t, library, "insert into books values ('"+marker+"')")
	p.suspend(t, p.Endpoint) // the source wakes for it

	b := p.schemaOnly(t, p.Branch)
	if b.Branch.ParentID != nil || b.Branch.InitSource == nil || *b.Branch.InitSource != "schema-only" {
		t.Errorf("%+v", b.Branch)
	}
	s.wait(t, b.Operations)
	uri := (*b.ConnectionUris)[0].ConnectionURI
	child := s.connect(t, uri)

	for _, database := range []string{p.Database, "it's a \"library\""} {
		d, err := s.CompareSchemas(t.Context(), p.ID, b.Branch.ID, sdk.SchemaComparison{Database: database, BaseBranchID: p.Branch})
		if err != nil || d != "" {
			t.Errorf("%s: %v\n%s", database, err, d)
		}
	}
	for query, want := range map[string]string{
		"select count(*)::text from app.events":              "0",
		"select count(*)::text from pg_largeobject_metadata": "0",
		"select count(*)::text from pg_statistic join pg_class c on c.oid = starelid where relnamespace = 'app'::regnamespace": "0",
		"select relispopulated::text from pg_class where relname = 'counts'":                                                   "false",
		"show statement_timeout": "17min",
		"select rolconnlimit || ' ' || rolvaliduntil::date || ' ' || rolconfig::text from pg_roles where rolname = 'reader'":                                               `3 2040-01-01 {"search_path=app, \"odd, name\", public"}`,
		"select setconfig::text from pg_db_role_setting where setrole = 'reader'::regrole and setdatabase <> 0":                                                            "{work_mem=5MB}",
		"select shobj_description('team'::regrole, 'pg_authid')":                                                                                                           "a group",
		"select shobj_description(oid, 'pg_database') from pg_database where datname = current_database()":                                                                 "the first",
		"select string_agg(member::regrole || ':' || admin_option::text, ',' order by member::regrole::text) from pg_auth_members where roleid = 'team'::regrole":          p.Role + ":true,reader:false",
		"select string_agg(rolname, ',') from pg_roles where rolsuper":                                                                                                     postgres.AdminRole,
		"select count(*)::text from pg_roles where rolname like 'bough%'":                                                                                                  "0",
		"select extowner::regrole::text || ' ' || extnamespace::regnamespace from pg_extension where extname = 'pgcrypto'":                                                 p.Role + " ext",
		"select nextval('app.people_serial_id_seq')::text":                                                                                                                 "1",
		"select count(*)::text from pg_class c join pg_roles r on r.oid = relowner where relnamespace = 'app'::regnamespace and rolname not in ('team', '" + p.Role + "')": "0",
	} {
		if got := value[string](t, child, query); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	sql(t, child, "insert into app.people (name) values ('new')")
	s.connect(t, as(t, uri, "reader", "made in SQL")) // passwords are the same
	if n := value[int](t, s.connect(t, as(t, in(t, uri, "it's a \"library\""), "keeper of books", keeper)), "select count(*)::int from books"); n != 0 {
		t.Errorf("the library has %d books", n)
	}
	password, err := s.RolePassword(t.Context(), p.ID, b.Branch.ID, p.Role)
	if err != nil || password != p.Password {
		t.Errorf("the stored password is %q: %v", password, err)
	}

	// No byte of the parent's rows is on the disk.
	p.suspend(t, b.Endpoints[0].ID)
	for _, dir := range []string{"pool/volumes/" + b.Branch.ID, "wal/" + b.Branch.ID} {
		if found := holding(t, filepath.Join(s.dir, dir), marker); len(found) > 0 {
			t.Errorf("%s: rows of the parent are in %v", dir, found)
		}
	}
	if found := holding(t, filepath.Join(s.dir, "pool/volumes", p.Branch), marker); len(found) == 0 {
		t.Error("not even the parent's files hold its rows: this test sees nothing")
	}

	// It is a root that can be deleted, a parent itself, and nothing to the branch that its schema is from.
	kid := p.branch(t, b.Branch.ID)
	if n := value[int](t, s.connect(t, kid.URI), "select count(*)::int from app.people"); n != 1 {
		t.Errorf("its child has %d rows", n)
	}
	for _, id := range []string{kid.ID, b.Branch.ID} {
		gone, err := s.DeleteBranch(t.Context(), p.ID, id)
		if err != nil {
			t.Fatal(err)
		}
		s.wait(t, gone.Operations)
	}
	s.settled(t)
}

// holding lists the files below dir that hold text.
func holding(t *testing.T, dir, text string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		if bytes.Contains(raw, []byte(text)) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestSchemaOnlyBranchKilled kills the server while branches are made, again and again.
func TestSchemaOnlyBranchKilled(t *testing.T) {
	s := start(t)
	p := schemaProject(t, s)
	sql(t, s.connect(t, p.URI), "create table t as select "+"'"+marker+"' as note")
	volume := func(b *sdk.BranchCreated) string { return filepath.Join(s.dir, "pool/volumes", b.Branch.ID) }
	for _, until := range []func(b *sdk.BranchCreated) bool{
		func(*sdk.BranchCreated) bool { return true },
		func(b *sdk.BranchCreated) bool { _, err := os.Stat(volume(b)); return err == nil },
		func(b *sdk.BranchCreated) bool { return len(postmasters(s.dir)[volume(b)]) > 0 },
		func(b *sdk.BranchCreated) bool { // there is a database that the template does not have
			bases := func(volume string) (names []string) {
				dirs, _ := filepath.Glob(filepath.Join(volume, "base", "[1-9][0-9][0-9][0-9][0-9]"))
				for _, dir := range dirs {
					names = append(names, filepath.Base(dir))
				}
				return names
			}
			templates := bases(filepath.Join(s.dir, "pool/volumes", "template-*"))
			return slices.ContainsFunc(bases(volume(b)), func(name string) bool { return !slices.Contains(templates, name) })
		},
	} {
		b := p.schemaOnly(t, p.Branch)
		eventually(t, opLimit, func() string {
			if until(b) {
				return ""
			}
			return "the branch does not get that far"
		})
		s.Restart()
		s.wait(t, b.Operations)
		conn := s.connect(t, (*b.ConnectionUris)[0].ConnectionURI)
		if n := value[int](t, conn, "select count(*)::int from t"); n != 0 {
			t.Errorf("%d rows", n)
		}
		_ = conn.Close(t.Context())
	}
	s.settled(t)
}

// TestSchemaOnlyRefused asks for what cannot be.
func TestSchemaOnlyRefused(t *testing.T) {
	s := start(t)
	p := schemaProject(t, s)
	conn := s.connect(t, p.URI)
	sql(t, conn, "create database closed")
	sql(t, conn, "alter database closed allow_connections false")
	b := p.schemaOnly(t, p.Branch)
	if _, err := s.WaitForOperations(t.Context(), b.Operations[:1], nil); err == nil {
		t.Error("a database that lets nobody in was copied")
	}
	list := p.operations(t, "create_branch")
	if text := list[0].Error; text == nil || !strings.Contains(*text, "closed") {
		t.Errorf("%+v", list[0])
	}
	if _, err := os.Stat(filepath.Join(s.dir, "pool/volumes", b.Branch.ID)); err == nil {
		t.Error("what failed left a volume")
	}
	if open := value[bool](t, conn, "select datallowconn from pg_database where datname = 'closed'"); open {
		t.Error("the source was changed")
	}
	gone, err := s.DeleteBranch(t.Context(), p.ID, b.Branch.ID)
	if err != nil {
		t.Fatal(err)
	}
	s.wait(t, gone.Operations)
	s.settled(t)
}
