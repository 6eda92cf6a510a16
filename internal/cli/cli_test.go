package cli

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

func TestTables(t *testing.T) {
	s := newShell(t, newFake(t))
	s.expect("projects list", ""+
		"ID                    NAME  POSTGRES  REGION  CREATED\n"+
		"brisk-ember-81697531  shop  17        local   3 hours ago\n", "", 0)
	s.expect("branches list", ""+
		"NAME       ID         PARENT  DEFAULT  STATE  SIZE      CREATED\n"+
		"main       br-main-1  -       yes      ready  30.0 MiB  2 minutes ago\n"+
		"try-index  br-try-2   main    -        ready  -         2 minutes ago\n", "", 0)
	s.expect("endpoints list", ""+
		"ID          BRANCH     TYPE        STATE   CU      SLEEPS AFTER  LAST ACTIVE\n"+
		"ep-ivory-1  main       read_write  idle    0.25-2  5m (default)  never\n"+
		"ep-lunar-2  try-index  read_write  active  0.25-2  5m (default)  never\n", "", 0)
	s.expect("databases list", "NAME    OWNER         CREATED\nneondb  neondb_owner  7 days ago\n", "", 0)
	s.expect("roles list", "NAME          PROTECTED  CREATED\nneondb_owner  -          7 days ago\n", "", 0)
	s.expect("keys list", "ID      NAME  LAST USED       FROM       CREATED\n100001  ci    30 seconds ago  127.0.0.1  7 days ago\n", "", 0)
	s.expect("orgs list", "ID     NAME  HANDLE  CREATED\norg-1  Acme  acme    1 year ago\n", "", 0)
	s.expect("operations list --limit 1", ""+
		"ID    ACTION         STATUS    OF          TOOK   BEGUN\n"+
		"op-9  start_compute  finished  ep-ivory-1  913ms  1 minute ago\n", "There are older ones; --limit 0 shows all.\n", 0)
	s.expect("operations list", ""+
		"ID    ACTION         STATUS    OF          TOOK   BEGUN         ERROR\n"+
		"op-9  start_compute  finished  ep-ivory-1  913ms  1 minute ago\n"+
		"op-8  create_branch  failed    br-new-3    0s     1 minute ago  no space left\n", "", 0)
	s.expect("branches get try-index", ""+
		"Id:        br-try-2\nName:      try-index\nProject:   brisk-ember-81697531\nParent:    br-main-1 at 0/1A7F730\n"+
		"State:     ready\nCreated:   2031-03-17T11:58:00Z (2 minutes ago)\nEndpoint:  ep-lunar-2 (active)\n", "", 0)
}

func TestEmptyListSaysWhatToDo(t *testing.T) {
	f := newFake(t)
	f.projects = []obj{}
	s := newShell(t, f)
	s.expect("projects list", "", "No projects. Make one with: bough projects create\n", 0)
	s.expect("projects list -o json", "[]\n", "", 0)
	s.refuses("branches list", 1, "there is no project yet", "bough projects create")
}

func TestJSON(t *testing.T) {
	f := newFake(t)
	s := newShell(t, f)
	s.expect("connection-string -o json", "{\n  \"uri\": \"postgresql://neondb_owner:npg_7B28fcCgA7F9@ep-ivory-1.db.localhost:6432/neondb"+
		"?channel_binding=require&sslmode=require\"\n}\n", "", 0)
	s.expect("databases list -o json", `[
  {
    "branch_id": "br-main-1",
    "created_at": "2031-03-10T12:00:00Z",
    "id": 1,
    "name": "neondb",
    "owner_name": "neondb_owner",
    "updated_at": "0001-01-01T00:00:00Z"
  }
]
`, "", 0)
	// What is printed after waiting is how things are then.
	out, errs, code := s.run("branches", "create", "made", "-o", "json")
	var made struct {
		Branch     struct{ ID, Current_State string }
		Operations []struct{ ID, Status string }
	}
	if err := json.Unmarshal([]byte(out), &made); err != nil || errs != "" || code != 0 {
		t.Fatalf("%v, stderr %q, exit code %d\n%s", err, errs, code, out)
	}
	if made.Branch.ID != "br-new-3" || made.Branch.Current_State != "ready" || len(made.Operations) != 2 ||
		made.Operations[0].Status != "finished" || made.Operations[1].Status != "finished" {
		t.Errorf("%+v", made)
	}
	for _, list := range []string{"projects", "branches", "endpoints", "roles", "operations", "keys", "orgs"} {
		out, _, code := s.run(list, "list", "-o", "json")
		var items []obj
		if err := json.Unmarshal([]byte(out), &items); err != nil || len(items) == 0 || code != 0 {
			t.Errorf("%s list: %v, exit code %d\n%s", list, err, code, out)
		}
	}
}

func TestCreateBranch(t *testing.T) {
	f := newFake(t)
	s := newShell(t, f)
	for line, body := range map[string]string{
		"branches create made --cu 0.5-2 --suspend-timeout 10m": `{"branch":{"name":"made"},"endpoints":[{"autoscaling_limit_max_cu":2,` +
			`"autoscaling_limit_min_cu":0.5,"suspend_timeout_seconds":600,"type":"read_write"}]}`,
		"branches create --parent try-index --no-compute --no-wait": `{"branch":{"parent_id":"br-try-2"}}`,
		"branches create --parent br-try-2 --no-compute --no-wait":  `{"branch":{"parent_id":"br-try-2"}}`,
		"branches create --suspend-timeout never --no-wait":         `{"branch":{},"endpoints":[{"suspend_timeout_seconds":-1,"type":"read_write"}]}`,
	} {
		f.calls = nil
		if _, errs, code := s.run(strings.Fields(line)...); code != 0 {
			t.Errorf("%s: %s", line, errs)
		}
		if want := "POST /projects/" + shop + "/branches " + body; len(f.calls) != 1 || f.calls[0] != want {
			t.Errorf("%s sent\n%q, wanted\n%q", line, f.calls, want)
		}
	}
}

func TestWaiting(t *testing.T) {
	f := newFake(t)
	s := newShell(t, f)
	if _, _, code := s.run("endpoints", "start", "main"); code != 0 || f.looks["op-1"] != 2 {
		t.Errorf("exit code %d after %d looks", code, f.looks["op-1"])
	}
	f.looks["op-1"] = 0
	_, errs, code := s.run("endpoints", "start", "main", "--no-wait")
	if code != 0 || f.looks["op-1"] != 0 || !strings.Contains(errs, "1 operation goes on") {
		t.Errorf("--no-wait: exit code %d, %d looks, %q", code, f.looks["op-1"], errs)
	}
	f.fail["start_compute"] = "the port is taken"
	f.looks = map[string]int{}
	out, errs, code := s.run("branches", "create")
	if code != 1 || out != "" || errs != "branch made (br-new-3) was created, but:\n"+
		"bough: start_compute of br-new-3 failed: the port is taken (operation op-2)\n" {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, out, errs)
	}
}

func TestSpinnerOnATerminalOnly(t *testing.T) {
	f := newFake(t)
	s := newShell(t, f)
	s.opts.IsTTY = func(stream any) bool { _, isErr := stream.(*lockedBuffer); return isErr }
	out, errs, code := s.run("endpoints", "start", "main", "-o", "json")
	if code != 0 || strings.Contains(out, "\x1b") || !strings.HasSuffix(errs, "\r\x1b[K") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, out, errs)
	}
}

func TestConfirmation(t *testing.T) {
	f := newFake(t)
	s := newShell(t, f)
	s.opts.IsTTY = func(any) bool { return true }
	for reply, deletes := range map[string]bool{"": false, "n\n": false, "\n": false, "y\n": true, "YES\n": true} {
		f.calls, f.looks = nil, map[string]int{}
		s.opts.In = strings.NewReader(reply)
		_, errs, code := s.run("branches", "delete", "try-index")
		if !strings.Contains(errs, "Delete branch try-index (br-try-2) of project "+shop+"? [y/N] ") || (len(f.calls) == 1) != deletes || (code == 0) != deletes {
			t.Errorf("%q: exit code %d, calls %v, stderr %q", reply, code, f.calls, errs)
		}
	}
	f.looks = map[string]int{}
	s.opts.In = strings.NewReader("")
	if out, _, code := s.run("branches", "delete", "try-index", "--yes"); code != 0 || out != "Deleted branch try-index (br-try-2)\n" {
		t.Errorf("--yes: exit code %d, %q", code, out)
	}
}

func TestWhichProject(t *testing.T) {
	f := newFake(t)
	f.projects = append(f.projects, project("calm-frost-11111111", "blog"), project("dry-hill-22222222", "blog"))
	s := newShell(t, f)
	s.refuses("branches list", 2, "3 projects", "--project-id", "BOUGH_PROJECT_ID", shop+" (shop)")
	s.refuses("branches list --project-id blog", 2, "2 projects", "calm-frost-11111111, dry-hill-22222222")
	s.refuses("branches list --project-id shpo", 1, `no project "shpo"`, "did you mean shop?")
	s.refuses("projects delete nothing-like-it", 1, "see bough projects list")
	for _, args := range [][]string{{"--project-id", shop}, {"--project-id", "shop"}} {
		if _, errs, code := s.run(append([]string{"branches", "list"}, args...)...); code != 0 {
			t.Errorf("%v: %s", args, errs)
		}
	}
	s.env["BOUGH_PROJECT_ID"] = shop
	if _, errs, code := s.run("branches", "list"); code != 0 {
		t.Errorf("BOUGH_PROJECT_ID: %s", errs)
	}
	if out, _, code := s.run("projects", "get", "calm-frost-11111111"); code != 0 || !strings.Contains(out, "blog") {
		t.Errorf("an argument does not beat BOUGH_PROJECT_ID: %d %s", code, out)
	}
	if len(f.calls) != 0 {
		t.Errorf("something was changed: %v", f.calls)
	}
}

func TestNames(t *testing.T) {
	f := newFake(t)
	// A name that is another branch's id: the id wins.
	f.branches = append(f.branches, branchObj("br-odd-4", "br-try-2", "br-main-1"))
	s := newShell(t, f)
	for _, want := range []string{"br-try-2", "try-index"} {
		if out, errs, code := s.run("branches", "get", want, "-o", "json"); code != 0 || !strings.Contains(out, `"id": "br-try-2"`) {
			t.Errorf("%s: %s%s", want, out, errs)
		}
	}
	s.refuses("branches get try-idnex", 1, `no branch "try-idnex"`, "did you mean try-index?")
	s.refuses("branches get other", 1, "it has main, try-index")
	s.refuses("endpoints get try-indx", 1, "did you mean try-index?")
	s.refuses("endpoints get br-odd-4", 1, "has no compute", "bough endpoints create --branch br-odd-4")
	s.refuses("roles reveal-password neondb_ower", 1, "did you mean neondb_owner?")
	s.refuses("connection-string --database-name neonbd", 1, "did you mean neondb?")
	s.refuses("keys revoke other", 1, "no key", "bough keys list")
	if out, errs, code := s.run("endpoints", "get", "try-index", "-o", "json"); code != 0 || !strings.Contains(out, `"id": "ep-lunar-2"`) {
		t.Errorf("endpoint of a branch: %s%s", out, errs)
	}
	f.databases = append(f.databases, obj{"name": "orders", "owner_name": "app"})
	f.roles = append(f.roles, obj{"name": "app"})
	s.refuses("connection-string", 2, "2 databases", "--database-name", "neondb, orders")
	s.refuses("databases create x", 2, "2 roles", "--owner-name", "neondb_owner, app")
	if out, _, _ := s.run("connection-string", "--database-name", "orders", "--pooled"); !strings.HasPrefix(out, "postgresql://app:") ||
		!strings.Contains(out, "ep-ivory-1-pooler.") {
		t.Errorf("the owner is not the default role, or not pooled: %s", out)
	}
	// An unset variable of a script must never mean the default branch or the only project.
	for _, args := range [][]string{{"branches", "delete", ""}, {"projects", "delete", ""}, {"endpoints", "delete", ""}, {"branches", "rename", "", "x"}} {
		if _, errs, code := s.run(args...); code != 2 {
			t.Errorf("%q: exit code %d, %s", args, code, errs)
		}
	}
	if len(f.calls) != 0 {
		t.Errorf("something was changed: %v", f.calls)
	}
}

func TestUsageErrors(t *testing.T) {
	f := newFake(t)
	s := newShell(t, f)
	for line, word := range map[string]string{
		"brnches":                                "did you mean branches?",
		"projects lst":                           "did you mean list?",
		"projects list extra":                    "usage: bough projects list",
		"branches delete":                        "usage: bough branches delete <branch>",
		"branches list --foo":                    "bough branches list --help",
		"branches list -o yaml":                  "table or json",
		"branches create a --name b":             "given twice",
		"branches create --cu big":               "0.25-2",
		"branches create --cu 2-1":               "0.25-2",
		"branches create --suspend-timeout soon": "10m",
		"branches create --no-compute --cu 1":    "--no-compute",
		"endpoints update main":                  "nothing to change",
		"endpoints update main --set work_mem":   "NAME=VALUE",
		"projects update":                        "nothing to change",
		"databases update neondb":                "nothing to change",
		"databases create":                       "give a name",
		"roles create":                           "give a name",
		"keys create":                            "give a name",
		"endpoints create --type fast":           "read_only",
		"operations list --limit -1":             "0 or more",
		"psql a b":                               "one branch at most",
	} {
		s.refuses(line, 2, word)
	}
	if len(f.calls) != 0 {
		t.Errorf("something was changed: %v", f.calls)
	}
}

func TestWhereTheServerIs(t *testing.T) {
	f := newFake(t)
	s := newShell(t, nil)
	s.refuses("me", 1, "there is no "+filepath.Join(s.dir, "admin.json"), "bough serve", "BOUGH_API_URL")
	// As an ordinary user, while a server of root is there.
	s.opts.SystemDir = t.TempDir()
	s.refuses("me", 1, s.opts.SystemDir+" exists", "sudo", "--data-dir")

	s.env["BOUGH_API_URL"], s.env["BOUGH_API_KEY"] = f.URL, fakeKey
	s.expect("me", "Id:     u-1\nName:   Robin Example\nLogin:  robin\nEmail:  robin@example.com\nAPI:    "+f.URL+" (from BOUGH_API_URL)\n", "", 0)
	s.refuses("me --api-key napi_wrong", 1, "does not accept the API key from --api-key", "request req-401")
	s.env["BOUGH_API_KEY"] = "napi_old"
	s.refuses("me", 1, "from BOUGH_API_KEY")
	if _, errs, _ := s.run("me"); strings.Contains(errs, "napi_old") {
		t.Errorf("the key is in the message: %s", errs)
	}
	// A --data-dir that was typed beats the environment.
	s.admin(f.URL+"/api/v2", fakeKey)
	if _, errs, code := s.run("me", "--data-dir", s.dir); code != 0 {
		t.Error(errs)
	}
	// The key of admin.json stays with its server.
	delete(s.env, "BOUGH_API_KEY")
	s.env["BOUGH_API_URL"] = "http://192.0.2.1/api/v2"
	s.refuses("me", 1, "needs a key of its own")
	s.refuses("me --api-key k --api-url nonsense", 2, "nonsense")

	delete(s.env, "BOUGH_API_URL")
	s.admin(f.URL+"/api/v2", "napi_old")
	s.refuses("me", 1, "API key from "+filepath.Join(s.dir, "admin.json"))
	if err := os.WriteFile(filepath.Join(s.dir, "admin.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.refuses("me", 1, "damaged")
}

func TestNotRunning(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	s := newShell(t, nil)
	s.admin("http://"+l.Addr().String()+"/api/v2", fakeKey)
	s.refuses("projects list", 1, "no server answers at http://"+l.Addr().String(), "bough serve")
}

func TestPermissionDenied(t *testing.T) {
	if os.Geteuid() == 0 {
		// root may read everything: ask the function that decides with the error an ordinary user gets.
		a := &app{Options: Options{SystemDir: "/nowhere"}}
		err := a.adminError("/var/lib/bough/admin.json", &os.PathError{Op: "open", Path: "/var/lib/bough/admin.json", Err: os.ErrPermission})
		if !strings.Contains(err.Error(), "sudo bough") {
			t.Error(err)
		}
		return
	}
	s := newShell(t, newFake(t))
	if err := os.Chmod(filepath.Join(s.dir, "admin.json"), 0); err != nil {
		t.Fatal(err)
	}
	s.refuses("me", 1, "may not read", "sudo bough", "BOUGH_API_KEY")
}

func TestPsql(t *testing.T) {
	s := newShell(t, newFake(t))
	var path string
	var argv, env []string
	s.opts.Exec = func(p string, a, e []string) error { path, argv, env = p, a, e; return nil }
	s.refuses("psql", 1, "psql is not installed", "postgresql-client")

	for _, major := range []string{"9.6", "15", "17"} {
		dir := filepath.Join(s.dir, "pg", major, "bin")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "psql"), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.opts.PgLib = filepath.Join(s.dir, "pg")
	const dsn = "--dbname=postgresql://neondb_owner@ep-ivory-1.db.localhost:6432/neondb?channel_binding=require&sslmode=require"
	for line, rest := range map[string][]string{
		"psql":                nil,
		"psql main":           nil,
		"psql -- -c x":        {"-c", "x"},
		"psql main -- -c x y": {"-c", "x", "y"},
	} {
		if _, errs, code := s.run(strings.Fields(line)...); code != 0 {
			t.Errorf("%s: %s", line, errs)
			continue
		}
		if want := append([]string{"psql", dsn}, rest...); !slices.Equal(argv, want) {
			t.Errorf("%s: %q, wanted %q", line, argv, want)
		}
		if path != filepath.Join(s.opts.PgLib, "17", "bin", "psql") || !slices.Contains(env, "PGPASSWORD=npg_7B28fcCgA7F9") {
			t.Errorf("%s: %s with %q", line, path, env)
		}
	}
	bin := filepath.Join(s.opts.PgLib, "15", "bin")
	s.env["PATH"] = bin
	if _, _, code := s.run("psql"); code != 0 || path != filepath.Join(bin, "psql") {
		t.Errorf("PATH does not come first: %s", path)
	}
	s.opts.Exec = func(string, []string, []string) error { return errors.New("exec format error") }
	s.refuses("psql", 1, "cannot run", "exec format error")
}

// Every verb has a sentence and an example, and its example is of itself.
func TestHelp(t *testing.T) {
	var check func(c *cobra.Command)
	check = func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s has no sentence", c.CommandPath())
		}
		if !c.HasSubCommands() && !strings.Contains(c.Example, "bough "+strings.TrimPrefix(c.CommandPath(), "bough ")) {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			check(sub)
		}
	}
	for _, c := range Commands(Options{}) {
		check(c)
	}
	s := newShell(t, nil)
	for _, line := range []string{"", "projects", "projects --help", "help branches create"} {
		if out, errs, code := s.run(strings.Fields(line)...); code != 0 || errs != "" || !strings.Contains(out, "Usage:") {
			t.Errorf("bough %s: exit code %d, %q", line, code, errs)
		}
	}
}

func TestWords(t *testing.T) {
	a := &app{Options: Options{Now: func() time.Time { return now }}}
	for d, want := range map[time.Duration]string{0: "now", 999 * time.Millisecond: "now", time.Second: "1 second ago", 90 * time.Second: "1 minute ago",
		49 * time.Hour: "2 days ago", -2 * time.Hour: "2 hours from now", 400 * 24 * time.Hour: "1 year ago"} {
		if got := a.ago(now.Add(-d)); got != want {
			t.Errorf("ago(%v) = %q, wanted %q", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 5 << 40: "5.0 TiB"} {
		if got := bytesOf(n); got != want {
			t.Errorf("bytesOf(%d) = %q, wanted %q", n, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0s", 90: "1m30s", 300: "5m", 600: "10m", 3600: "1h", 5400: "1h30m", 36000: "10h", 86400: "1d", 604800: "7d"} {
		if got := duration(n); got != want {
			t.Errorf("duration(%d) = %q, wanted %q", n, got, want)
		}
	}
	for in, want := range map[string]int64{"300": 300, "10m": 600, "7d": 604800, "24h": 86400} {
		if got, err := seconds("--x", in); err != nil || *got != want {
			t.Errorf("seconds(%q) = %v, %v", in, got, err)
		}
	}
	if got := printable("a\x1b[2Jb\nc"); got != "a�[2Jb�c" {
		t.Errorf("printable: %q", got)
	}
}

func TestBranchOfAMoment(t *testing.T) {
	f := newFake(t)
	s := newShell(t, f)
	for at, want := range map[string]string{
		"10m":                  `"parent_timestamp":"2031-03-17T11:50:00Z"`,
		"2031-03-16T18:00:00Z": `"parent_timestamp":"2031-03-16T18:00:00Z"`,
		"0/1A7F730":            `"parent_lsn":"0/1A7F730"`,
	} {
		f.calls = nil
		_, errs, code := s.run("branches", "create", "--no-compute", "--at", at)
		if code != 0 || !slices.ContainsFunc(f.calls, func(c string) bool { return strings.HasPrefix(c, "POST ") && strings.Contains(c, want) }) {
			t.Errorf("--at %s: %d %s %q, want %s", at, code, errs, f.calls, want)
		}
	}
	s.refuses("branches create --at yesterday", 2, "0/1A7F730")
}
