package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/sdk"
)

// TestVersions does the main job on every major version that is installed, all on one server.
func TestVersions(t *testing.T) {
	builds, err := postgres.FindBuilds(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(builds) < postgres.MaxMajor-postgres.MinMajor+1 {
		t.Logf("not all versions are here; get them with: scripts/deps.sh test")
	}
	s := start(t)
	t.Run("majors", func(t *testing.T) {
		for _, b := range builds {
			t.Run(fmt.Sprint(b.Major), func(t *testing.T) {
				t.Parallel()
				s.version(t, b)
			})
		}
	})
	standard, _ := postgres.Default(builds)
	p := s.project(t)
	if n := value[string](t, s.connect(t, p.URI), "show server_version"); !strings.HasPrefix(n, standard.Version) {
		t.Errorf("a project that asks for no version runs %s, want %s", n, standard.Version)
	}
	s.settled(t)
}

// version does the main job on one build: write, branch, sleep, wake, roles and databases.
func (s *server) version(t *testing.T, b postgres.Build) {
	p := s.projectWith(t, sdk.ProjectCreate{PgVersion: &b.Major, DefaultEndpointSettings: suspendAfter(never)})
	if made, err := s.Project(t.Context(), p.ID); err != nil || made.PgVersion != b.Major {
		t.Errorf("the project is of version %d (%v)", made.PgVersion, err)
	}
	conn := s.connect(t, p.URI)
	if n := value[string](t, conn, "show server_version"); !strings.HasPrefix(n, b.Version) {
		t.Errorf("it runs %s, want %s", n, b.Version)
	}
	sql(t, conn, "create table items (id int primary key, note text)")
	sql(t, conn, "insert into items select n, repeat('x', 100) from generate_series(1, 20000) n")
	child := p.branch(t, "")
	onChild := *p
	onChild.URI = child.URI
	forked := s.connect(t, child.URI)
	sql(t, conn, "delete from items where id > 15000")
	sql(t, forked, "delete from items where id <= 10000")
	s.sound(t, child.ID)

	// Roles and databases, made through the API and in SQL.
	role, err := s.CreateRole(t.Context(), p.ID, child.ID, sdk.RoleCreate{Name: "worker"})
	if err != nil {
		t.Fatal(err)
	}
	s.wait(t, role.Operations)
	made, err := s.CreateDatabase(t.Context(), p.ID, child.ID, sdk.DatabaseCreate{Name: "ledger", OwnerName: "worker"})
	if err != nil {
		t.Fatal(err)
	}
	s.wait(t, made.Operations)
	worker := s.connect(t, onChild.as(t, "worker", *role.Role.Password, "ledger"))
	sql(t, worker, "create table entries (n int)")
	sql(t, worker, "insert into entries values (7)")
	sql(t, forked, "create role plain login password 'Plain-Secret-1'")

	p.suspend(t, p.Endpoint)
	p.suspend(t, child.Endpoint)
	if n := value[int](t, s.connect(t, p.URI), "select count(*) from items"); n != 15000 {
		t.Errorf("the parent woke with %d rows, want 15000", n)
	}
	if n := value[int](t, s.connect(t, child.URI), "select count(*) from items"); n != 10000 {
		t.Errorf("the branch woke with %d rows, want 10000", n)
	}
	worker = s.connect(t, onChild.as(t, "worker", *role.Role.Password, "ledger"))
	if n := value[int](t, worker, "select n from entries"); n != 7 {
		t.Errorf("the new database woke with %d", n)
	}
	if who := value[string](t, s.connect(t, onChild.as(t, "plain", "Plain-Secret-1", p.Database)), "select current_user::text"); who != "plain" {
		t.Errorf("the role made in SQL logs in as %s", who)
	}
	s.sound(t, p.Branch)

	p.suspend(t, p.Endpoint)
	late := p.branch(t, "")
	if n := value[int](t, s.connect(t, late.URI), "select count(*) from items"); n != 15000 {
		t.Errorf("the branch of a sleeping parent has %d rows, want 15000", n)
	}
	if _, err := s.DeleteProject(t.Context(), p.ID); err != nil {
		t.Error(err)
	}
}

// TestRemovedVersion takes a version away from under a server, and gives it back.
func TestRemovedVersion(t *testing.T) {
	builds, err := postgres.FindBuilds(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	// A folder of our own hides what `bough postgres install` made; what the system packages cannot be hidden.
	home := t.TempDir()
	openUp(t, home)
	t.Setenv("BOUGH_POSTGRES_HOME", home)
	others, err := postgres.FindBuilds(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	// What is taken away is not to be the default, which the control database and the other project run.
	standard, _ := postgres.Default(others)
	var gone postgres.Build
	for _, b := range builds {
		if b.Major != postgres.DefaultMajor && b.Major < standard.Major && !slices.ContainsFunc(others, func(o postgres.Build) bool { return o.Major == b.Major }) {
			gone = b
		}
	}
	if gone.Major == 0 {
		t.Skip("needs a version of the system's own and one of `bough postgres install`; get them with: scripts/deps.sh test")
	}
	link, aside := filepath.Join(home, fmt.Sprint(gone.Major)), filepath.Join(home, "aside")
	if err := os.Symlink(filepath.Dir(gone.BinDir), link); err != nil {
		t.Fatal(err)
	}
	s := start(t)
	p := s.projectWith(t, sdk.ProjectCreate{PgVersion: &gone.Major, DefaultEndpointSettings: suspendAfter(never)})
	conn := s.connect(t, p.URI)
	sql(t, conn, "create table kept as select 1 as n")
	since := value[time.Time](t, conn, "select pg_postmaster_start_time()")
	other := s.project(t)
	other.suspend(t, other.Endpoint)

	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(link, aside)
	advice := fmt.Sprintf("bough postgres install %d", gone.Major)
	refused := func(what string, status int, method, path, body string) {
		t.Helper()
		r := s.raw(t, "", method, path, body)
		if r.status != status || !strings.Contains(r.message, advice) {
			t.Errorf("%s: %d %q, want %d and %q", what, r.status, r.message, status, advice)
		}
	}
	endpoint := "/projects/" + p.ID + "/endpoints/" + p.Endpoint
	refused("a new project", 400, "POST", "/projects", fmt.Sprintf(`{"project":{"pg_version":%d}}`, gone.Major))
	refused("a branch", 422, "POST", "/projects/"+p.ID+"/branches", `{"endpoints":[{"type":"read_write"}]}`)
	refused("a restart", 422, "POST", endpoint+"/restart", "")

	// What runs goes on, also under the next server.
	sql(t, conn, "insert into kept values (2)")
	s.Restart()
	s.settled(t)
	conn = s.connect(t, p.URI)
	if at := value[time.Time](t, conn, "select pg_postmaster_start_time()"); !at.Equal(since) {
		t.Errorf("the compute was restarted at %v", at)
	}

	// What sleeps stays asleep, and says why.
	p.suspend(t, p.Endpoint)
	s.settled(t)
	before := s.operations(t, p.ID)
	for range 3 {
		if _, err := s.tryConnect(t, p.URI); err == nil || !strings.Contains(err.Error(), advice) {
			t.Errorf("waking: %v, want %q", err, advice)
		}
	}
	if after := s.operations(t, p.ID); after != before {
		t.Errorf("each try to connect was recorded as an operation: %d, then %d", before, after)
	}
	refused("a start", 422, "POST", endpoint+"/start", "")
	if n := value[int](t, s.connect(t, other.URI), "select 1"); n != 1 {
		t.Error(n)
	}

	// The server comes up without it too, and finds it when it is back.
	s.Down()
	<-s.exited
	s.Start()
	if _, err := s.tryConnect(t, p.URI); err == nil || !strings.Contains(err.Error(), advice) {
		t.Errorf("waking after a restart: %v, want %q", err, advice)
	}
	move(aside, link)
	if n := value[int](t, s.connect(t, p.URI), "select sum(n) from kept"); n != 3 {
		t.Errorf("after it came back: %d, want 3", n)
	}
	s.settled(t)
}

func (s *server) operations(t *testing.T, projectID string) int {
	t.Helper()
	n := 0
	for _, err := range s.Operations(t.Context(), projectID, sdk.OperationFilter{}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

// openUp lets the computes' user pass through a test's folder and its parents.
func openUp(t *testing.T, dir string) {
	t.Helper()
	for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}
