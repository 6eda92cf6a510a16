package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

// beside makes another server on the data directory of s, at addresses of its own, and waits until it is ready.
func (s *server) beside(t *testing.T, args ...string) *server {
	t.Helper()
	b := &server{t: t, base: s.base, dir: s.dir, args: append(append([]string{}, s.args...), args...)}
	must(t, b.launch())
	t.Cleanup(func() { // before s ends
		if t.Failed() {
			return // its log is that of s
		}
		select {
		case <-b.exited:
		default:
			b.Term()
		}
	})
	eventually(t, startLimit, func() string {
		m, ok := b.member()
		if !ok {
			return "the second server is not ready"
		}
		s.mu.Lock()
		key := s.admin.APIKey
		s.mu.Unlock()
		c, err := sdk.New(sdk.Options{BaseURL: m.APIURL, APIKey: key, MaxRetries: -1})
		if err == nil {
			_, err = c.Me(t.Context())
		}
		if err != nil {
			return err.Error()
		}
		b.mu.Lock()
		b.admin, b.Client = admin{APIURL: m.APIURL, PGAddr: m.PGAddr, APIKey: key}, c
		b.mu.Unlock()
		return ""
	})
	return b
}

type member struct {
	PID    int    `json:"pid"`
	APIURL string `json:"api_url"`
	PGAddr string `json:"pg_addr"`
}

// member is what the data directory says about this server.
func (s *server) member() (m member, ready bool) {
	files, _ := filepath.Glob(filepath.Join(s.dir, "servers", "[0-9]*"))
	for _, file := range files {
		m = member{}
		raw, err := os.ReadFile(file)
		if err == nil && json.Unmarshal(raw, &m) == nil && m.PID == s.cmd.Process.Pid {
			return m, m.APIURL != ""
		}
	}
	return m, false
}

// of is the project as another server shows it.
func (p *project) of(s *server) *project {
	q := *p
	q.s = s
	return &q
}

var operationsTotal = regexp.MustCompile(`(?m)^bough_operation_seconds_count\{[^}]*\} ([0-9.e+]+)$`)

// ran is how many operations a server has ended.
func (s *server) ran(t *testing.T) (n int) {
	t.Helper()
	for _, m := range operationsTotal.FindAllStringSubmatch(s.metrics(t), -1) {
		f, err := strconv.ParseFloat(m[1], 64)
		must(t, err)
		n += int(f)
	}
	return n
}

// TestTwoServers runs two servers on one data directory: each serves everything, whoever works on it.
func TestTwoServers(t *testing.T) {
	a := start(t)
	b := a.beside(t)

	t.Run("the same addresses", func(t *testing.T) {
		host := strings.TrimSuffix(strings.TrimPrefix(a.admin.APIURL, "http://"), "/api/v2")
		out, err := a.bough("serve", "--data-dir", a.dir, "--http-listen", host, "--pg-listen", a.pgAddr())
		if err == nil || !strings.Contains(err.Error(), "already runs") || !strings.Contains(err.Error(), "--http-listen") {
			t.Errorf("%s\n%v", out, err)
		}
	})
	t.Run("status", func(t *testing.T) {
		var st struct {
			PID     int
			Servers []member
		}
		out, err := a.bough("status", "-o", "json")
		must(t, err)
		must(t, json.Unmarshal([]byte(out), &st))
		if len(st.Servers) != 2 || st.PID != a.cmd.Process.Pid {
			t.Errorf("%+v", st)
		}
		if text, err := a.bough("status"); err != nil || !strings.Contains(text, b.admin.APIURL) || !strings.Contains(text, a.admin.APIURL) {
			t.Errorf("%s, %v", text, err)
		}
	})

	pa, pb := a.project(t), b.project(t)
	for _, p := range []*project{pa, pb} {
		other := a
		if p.s == a {
			other = b
		}
		q := p.of(other)
		sql(t, p.s.connect(t, p.URI), "create table t as select 42 as n")
		if n := value[int](t, other.connect(t, p.URI), "select n from t"); n != 42 {
			t.Error(n)
		}
		pid := a.postmaster(t, p.Branch)

		// Passwords that the catalog has and the control database may not have yet.
		sql(t, p.s.connect(t, p.URI), "create role walker login password 'one'")
		if conn, err := other.tryConnect(t, p.as(t, "walker", "one", p.Database)); err != nil {
			t.Error(err)
		} else {
			sql(t, conn, "select 1")
		}
		if _, err := other.tryConnect(t, p.as(t, "walker", "two", p.Database)); sqlState(err) != "28P01" {
			t.Errorf("a wrong password: %v", err)
		}
		// What the API makes or shows by asking the running compute.
		if _, err := other.CreateRole(t.Context(), p.ID, p.Branch, sdk.RoleCreate{Name: "api_role"}); err != nil {
			t.Error(err)
		}
		a.settled(t)
		want(t, "roles", q.roles(t, p.Branch), p.roles(t, p.Branch))

		// A wake through the other one, alone and in a crowd on both.
		q.suspend(t, p.Endpoint)
		if n := value[int](t, other.connect(t, p.URI), "select n from t"); n != 42 {
			t.Error(n)
		}
		q.suspend(t, p.Endpoint)
		before := len(p.operations(t, api.StartCompute))
		all(t, 20, 20, func(i int) error {
			conn, err := []*server{a, b}[i%2].tryConnect(t, p.URI)
			if err == nil {
				_, err = conn.Exec(t.Context(), "select n from t")
			}
			return err
		})
		if n := len(p.operations(t, api.StartCompute)) - before; n != 1 {
			t.Errorf("%d starts for a crowd", n)
		}
		if pid == a.postmaster(t, p.Branch) {
			t.Error("the compute was not suspended")
		}

		// An idle timeout that is set through the other one.
		seconds := api.SuspendTimeout(1)
		q.ops(t)(other.UpdateEndpoint(t.Context(), p.ID, p.Endpoint, sdk.EndpointUpdate{SuspendTimeoutSeconds: &seconds}))
		p.awaitState(t, p.Endpoint, api.Idle)
		forever := api.SuspendTimeout(never)
		q.ops(t)(other.UpdateEndpoint(t.Context(), p.ID, p.Endpoint, sdk.EndpointUpdate{SuspendTimeoutSeconds: &forever}))

		// A crash is cured by whoever watches.
		q.ops(t)(other.StartEndpoint(t.Context(), p.ID, p.Endpoint))
		crash(t, a.postmaster(t, p.Branch))
		eventually(t, opLimit, func() string {
			conn, err := other.tryConnect(t, p.URI)
			if err == nil {
				_, err = conn.Exec(t.Context(), "select n from t")
			}
			if err != nil {
				return err.Error()
			}
			return ""
		})
		// A branch of the other server's running compute.
		br := q.branch(t, "")
		if n := value[int](t, p.s.connect(t, br.URI), "select n from t"); n != 42 {
			t.Error(n)
		}
	}
	if a.ran(t) == 0 || b.ran(t) == 0 {
		t.Errorf("operations that a ran: %d, b: %d", a.ran(t), b.ran(t))
	}
	a.settled(t)
	if findings := a.doctor(t).Findings; len(findings) > 0 {
		t.Errorf("%+v", findings)
	}
}

// TestTwoServersUnderLoad makes fifty mixed calls at both servers at once: every operation runs once.
func TestTwoServersUnderLoad(t *testing.T) {
	const calls = 50
	a := start(t)
	b := a.beside(t)
	servers := []*server{a, b}
	projects := []*project{a.project(t), b.project(t), a.project(t), b.project(t)}
	all(t, calls, 10, func(i int) error { return mixedCall(t, servers[i%2], projects[(i/2)%len(projects)], i) })
	a.settled(t)
	recorded := countOperations(t, a)
	if ranA, ranB := a.ran(t), b.ran(t); ranA+ranB != recorded || ranA == 0 || ranB == 0 {
		t.Errorf("a ran %d operations and b %d, of %d", ranA, ranB, recorded)
	} else {
		t.Logf("a ran %d operations and b %d", ranA, ranB)
	}
	for _, p := range projects {
		for _, s := range servers {
			sql(t, s.connect(t, p.URI), "select 1")
		}
	}
}

// countOperations counts the finished ones of all projects, and fails the test for those that failed or ran twice.
func countOperations(t *testing.T, s *server) (finished int) {
	t.Helper()
	projects, err := sdk.All(s.Projects(t.Context(), sdk.ProjectFilter{}))
	must(t, err)
	for _, p := range projects {
		ops, err := sdk.All(s.Operations(t.Context(), p.ID, sdk.OperationFilter{}))
		must(t, err)
		for _, op := range ops {
			if op.Status != api.OperationStatusFinished || op.FailuresCount > 0 {
				t.Errorf("operation %+v", op)
			}
			finished++
		}
	}
	return finished
}

// locked tells whether a call was refused because of the work that is under way.
func locked(err error) bool {
	e, ok := errors.AsType[*sdk.Error](err)
	return ok && e.Status == http.StatusLocked
}

// mixedCall makes one of several kinds of calls at a server, and waits there for what it starts.
func mixedCall(t *testing.T, s *server, p *project, i int) error {
	ctx, cancel := context.WithTimeout(t.Context(), opLimit)
	defer cancel()
	wait := func(ops []sdk.Operation, err error) error {
		if locked(err) {
			return nil
		}
		if err == nil {
			_, err = s.WaitForOperations(ctx, ops, nil)
		}
		return err
	}
	switch i % 5 {
	case 0:
		made, err := s.CreateBranch(ctx, p.ID, sdk.BranchCreateRequest{Endpoints: readWrite()})
		for ; locked(err) && ctx.Err() == nil; made, err = s.CreateBranch(ctx, p.ID, sdk.BranchCreateRequest{Endpoints: readWrite()}) {
			time.Sleep(pollEvery) // somebody else's turn
		}
		if err != nil {
			return err
		}
		if err := wait(made.Operations, nil); err != nil {
			return err
		}
		conn, err := s.tryConnect(t, (*made.ConnectionUris)[0].ConnectionURI)
		if err == nil {
			_, err = conn.Exec(ctx, "select 1")
		}
		return err
	case 1:
		r, err := s.CreateRole(ctx, p.ID, p.Branch, sdk.RoleCreate{Name: fmt.Sprintf("role_%d", i)})
		if err != nil {
			return wait(nil, err)
		}
		return wait(r.Operations, nil)
	case 2:
		r, err := s.SuspendEndpoint(ctx, p.ID, p.Endpoint)
		if err != nil {
			return wait(nil, err)
		}
		return wait(r.Operations, nil)
	case 3:
		conn, err := s.tryConnect(t, p.URI)
		if err == nil {
			_, err = conn.Exec(ctx, "select 1")
		}
		if sqlState(err) == "57P01" || err != nil && strings.Contains(err.Error(), "unexpected EOF") {
			return nil // suspended by another call
		}
		return err
	}
	_, err := s.Branch(ctx, p.ID, p.Branch)
	return err
}

// TestAServerOfTwoIsKilled kills the server that leads, and then the other one, in the middle of calls: the one that is left
// ends their work and takes over their computes.
func TestAServerOfTwoIsKilled(t *testing.T) {
	a := start(t)
	b := a.beside(t)
	killed := func(t *testing.T, dead, left *server) {
		watched := dead.projectWith(t, sdk.ProjectCreate{DefaultEndpointSettings: suspendAfter(never)})
		sleepy := dead.projectWith(t, sdk.ProjectCreate{DefaultEndpointSettings: suspendAfter(5)})
		conn := left.connect(t, watched.URI)
		sql(t, conn, "create table ticks (n int)")
		pid := left.postmaster(t, watched.Branch)
		busy := []*project{dead.project(t), left.project(t)}
		var group sync.WaitGroup
		for i := range 20 {
			group.Go(func() {
				s := []*server{dead, left}[i%2]
				if err := mixedCall(t, s, busy[(i/2)%2], i); err != nil && s == left {
					t.Errorf("call %d at the server that is left: %v", i, err)
				}
			})
		}
		eventually(t, opLimit, func() string { // in the middle
			if n := len(busy[0].of(left).operations(t, "")); n < 4 {
				return fmt.Sprintf("only %d operations", n)
			}
			return ""
		})
		dead.Kill9()
		sql(t, conn, "insert into ticks values (1)") // its compute and the sessions through the other do not notice
		group.Wait()
		left.settled(t)
		if now := left.postmaster(t, watched.Branch); now != pid {
			t.Errorf("the compute of a killed server was restarted: pid %d, was %d", now, pid)
		}
		sleepy.of(left).awaitState(t, sleepy.Endpoint, api.Idle) // somebody watches
		crash(t, pid)
		eventually(t, opLimit, func() string {
			if now := postmasters(left.dir)[left.volume(watched.Branch)]; len(now) != 1 || now[0] == pid {
				return fmt.Sprintf("nobody has restarted the compute: %v", now)
			}
			return ""
		})
		left.settled(t)
		sql(t, left.connect(t, watched.URI), "select * from ticks")
	}
	killed(t, b, a)
	c := a.beside(t)
	sql(t, c.connect(t, c.project(t).URI), "select 1")
	killed(t, a, c)
	eventually(t, opLimit, func() string {
		a.ready() // reads admin.json
		if a.admin.APIURL != c.admin.APIURL {
			return "admin.json does not name the server that is left"
		}
		return ""
	})
	if findings := a.doctor(t).Findings; len(findings) > 0 {
		t.Errorf("%+v", findings)
	}
	// One that comes back joins.
	d := c.beside(t)
	sql(t, d.connect(t, d.project(t).URI), "select 1")
	// An orderly end, too, hands everything over.
	p := d.project(t)
	pid := d.postmaster(t, p.Branch)
	d.Term()
	crash(t, pid)
	eventually(t, opLimit, func() string {
		if now := postmasters(c.dir)[c.volume(p.Branch)]; len(now) != 1 || now[0] == pid {
			return fmt.Sprintf("nobody has restarted the compute: %v", now)
		}
		return ""
	})
	c.Down()
	if err := syscall.Kill(c.cmd.Process.Pid, 0); !errors.Is(err, syscall.ESRCH) {
		<-c.exited
	}
}
