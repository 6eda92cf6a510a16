package e2e

import (
	"encoding/json"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/sdk"
)

// dumpable is the newest installed version whose schemas can be read here.
func dumpable(t *testing.T) (major int, ok bool) {
	t.Helper()
	builds := postgres.NewBuilds(nil)
	all, err := builds.Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range slices.Backward(all) {
		if _, err := builds.Dumper(t.Context(), b.Major); err == nil {
			return b.Major, true
		}
	}
	return 0, false
}

// schemaProject makes a project whose schemas can be read.
func schemaProject(t *testing.T, s *server) *project {
	t.Helper()
	major, ok := dumpable(t)
	if !ok {
		t.Skip("needs pg_dump of an installed version of PostgreSQL")
	}
	return s.projectWith(t, sdk.ProjectCreate{PgVersion: &major, DefaultEndpointSettings: suspendAfter(never)})
}

func (p *project) schema(t *testing.T, branch string) string {
	t.Helper()
	text, err := p.s.Schema(t.Context(), p.ID, branch, p.Database)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestSchema(t *testing.T) {
	s := start(t)
	p := schemaProject(t, s)
	parent := s.connect(t, p.URI)
	for _, statement := range []string{
		"create table people (id int primary key, name text not null unique, born date, label text generated always as (upper(name)) stored)",
		"create table pets (owner int references people (id), name varchar(20), primary key (owner, name))",
		"create function greet() returns text language sql as $$ select '\n\\restrict me\n-- Dumped from nothing' $$",
		"create role reader", "grant select on people to reader", "insert into people (id, name) values (1, 'not in a schema')",
		// What an owner attaches to a database does not change what is read.
		"alter database " + p.Database + " set quote_all_identifiers = on", "alter database " + p.Database + " set role = reader",
	} {
		sql(t, parent, statement)
	}
	child := p.branch(t, "")
	p.suspend(t, child.Endpoint)

	text := p.schema(t, p.Branch)
	for _, want := range []string{"CREATE TABLE public.people", "GRANT SELECT ON TABLE public.people TO reader", "OWNER TO " + p.Role, "\\restrict me\n-- Dumped from nothing"} {
		if !strings.Contains(text, want) {
			t.Errorf("the schema lacks %q:\n%s", want, text)
		}
	}
	for _, not := range []string{"not in a schema", "Dumped by", "\\unrestrict", "\"people\""} {
		if strings.Contains(text, not) {
			t.Errorf("the schema has %q:\n%s", not, text)
		}
	}
	if again := p.schema(t, p.Branch); again != text {
		t.Error("the same schema reads differently the second time")
	}

	// A sleeping compute wakes, and stays awake.
	if of := p.schema(t, child.ID); of != text {
		t.Error("a fresh child has another schema than its parent")
	}
	p.awaitState(t, child.Endpoint, api.Active)

	diff := func(branch, base string) string {
		t.Helper()
		d, err := s.CompareSchemas(t.Context(), p.ID, branch, sdk.SchemaComparison{Database: p.Database, BaseBranchID: base})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if d := diff(child.ID, ""); d != "" {
		t.Errorf("equal schemas differ:\n%s", d)
	}
	sql(t, s.connect(t, child.URI), "alter table people add column email text")
	d := diff(child.ID, "")
	if !strings.HasPrefix(d, "--- a/"+p.Database+"\n+++ b/"+p.Database+"\n@@ ") || !strings.Contains(d, "\n+    email text\n") {
		t.Errorf("not a unified diff that adds a column:\n%s", d)
	}
	if back := diff(p.Branch, child.ID); !strings.Contains(back, "\n-    email text\n") {
		t.Errorf("the other way round:\n%s", back)
	}

	t.Run("no endpoint", func(t *testing.T) {
		made, err := s.CreateBranch(t.Context(), p.ID, sdk.BranchCreateRequest{})
		if err != nil {
			t.Fatal(err)
		}
		s.wait(t, made.Operations)
		if of := p.schema(t, made.Branch.ID); of != text {
			t.Error("a branch without an endpoint has another schema than its parent")
		}
		if of := p.schema(t, made.Branch.ID); of != text { // its first start is over now
			t.Error("the second time it differs")
		}
		for dir := range postmasters(s.dir) {
			if filepath.Base(dir) == made.Branch.ID {
				t.Error("the compute was left running")
			}
		}
		grandchild := p.branch(t, made.Branch.ID)
		if d := diff(grandchild.ID, p.Branch); d != "" {
			t.Errorf("a child of it differs:\n%s", d)
		}
	})
	t.Run("json", func(t *testing.T) {
		got := s.raw(t, "", "GET", "/projects/"+p.ID+"/branches/"+p.Branch+"/schema?format=json&db_name="+p.Database, "")
		var out api.BranchSchema
		if err := json.Unmarshal(got.body, &out); err != nil || got.status != 200 || out.JSON == nil || out.SQL != nil || len(out.JSON.Tables) != 2 {
			t.Fatalf("%d: %v: %s", got.status, err, got.body)
		}
		pets := out.JSON.Tables[1]
		keys := *pets.Constraints
		if pets.Name != "pets" || len(keys) != 2 || keys[0].Type != "primary_key" || !slices.Equal(keys[0].Columns, []string{"owner", "name"}) ||
			keys[1].ReferencedTable == nil || keys[1].ReferencedTable.Table != "people" || pets.Columns[1].Type != "character varying(20)" {
			t.Errorf("%+v", pets)
		}
		if label := out.JSON.Tables[0].Columns[3]; !*label.Generated || !*label.Nullable {
			t.Errorf("%+v", label)
		}
	})
	t.Run("a database that a call has just made", func(t *testing.T) {
		if _, err := s.CreateDatabase(t.Context(), p.ID, p.Branch, sdk.DatabaseCreate{Name: "it's new", OwnerName: p.Role}); err != nil {
			t.Fatal(err)
		}
		text, err := s.Schema(t.Context(), p.ID, p.Branch, "it's new")
		if err != nil || strings.Contains(text, "CREATE TABLE") {
			t.Errorf("%v: %s", err, text)
		}
	})
	t.Run("refused", func(t *testing.T) {
		for query, want := range map[string]int{
			"/schema": 400, "/schema?db_name=nowhere": 404, "/schema?db_name=postgres": 404, "/schema?db_name=template1": 404,
			"/schema?db_name=" + p.Database + "&format=xml": 400, "/schema?db_name=" + p.Database + "&lsn=0/1": 501,
			"/schema?db_name=" + p.Database + "&lsn=x": 400, "/schema?db_name=" + p.Database + "&timestamp=2026-01-01T00:00:00Z": 501,
			"/schema?db_name=" + p.Database + "&lsn=0/1&timestamp=2026-01-01T00:00:00Z":                400,
			"/schema?db_name=" + url.QueryEscape("a b' dbname=postgres"):                               404,
			"/compare_schema?db_name=" + p.Database:                                                    400, // a root has no parent
			"/compare_schema?db_name=" + p.Database + "&base_branch_id=br-none":                        404,
			"/compare_schema?db_name=" + p.Database + "&base_branch_id=" + child.ID + "&base_lsn=0/12": 501,
		} {
			got := s.raw(t, "", "GET", "/projects/"+p.ID+"/branches/"+p.Branch+query, "")
			if got.status != want {
				t.Errorf("%s: %d, want %d: %s", query, got.status, want, got.body)
			}
		}
	})
	t.Run("locked", func(t *testing.T) {
		tx, err := parent.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		if _, err := tx.Exec(t.Context(), "lock table people in access exclusive mode"); err != nil {
			t.Fatal(err)
		}
		got := s.raw(t, "", "GET", "/projects/"+p.ID+"/branches/"+p.Branch+"/schema?db_name="+p.Database, "")
		if got.status != 423 || !strings.Contains(got.message, "lock") {
			t.Errorf("%d: %s", got.status, got.body)
		}
	})
	t.Run("command line", func(t *testing.T) {
		out, err := s.bough("branches", "schema-diff", "--project-id", p.ID, "--database-name", p.Database, child.ID)
		if err != nil || !strings.Contains(out, "+    email text") {
			t.Errorf("%v: %s", err, out)
		}
		if out, err = s.bough("branches", "schema", "--project-id", p.ID, "--database-name", p.Database); err != nil || out != text {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// TestSchemaWithoutPgDump asks a version of which there is a server and no client program.
func TestSchemaWithoutPgDump(t *testing.T) {
	builds := postgres.NewBuilds(nil)
	all, err := builds.Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		if _, err := builds.Dumper(t.Context(), b.Major); err == nil {
			continue
		}
		s := start(t)
		p := s.projectWith(t, sdk.ProjectCreate{PgVersion: &b.Major})
		got := s.raw(t, "", "GET", "/projects/"+p.ID+"/branches/"+p.Branch+"/schema?db_name="+p.Database, "")
		if got.status != 422 || got.code != "PG_DUMP_MISSING" || !strings.Contains(got.message, "postgresql-client-") {
			t.Errorf("%d: %s", got.status, got.body)
		}
		return
	}
	t.Skip("needs a PostgreSQL without pg_dump")
}
