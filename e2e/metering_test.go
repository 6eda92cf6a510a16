package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/sdk"
)

const oftenMetered = "--metering-every=200ms"

// counted waits until usage has been counted a few times more: what has happened before is in.
func (s *server) counted(t *testing.T) {
	t.Helper()
	counts := func() float64 {
		n, _ := strconv.ParseFloat(regexp.MustCompile(`bough_metering_total\{result="ok"\} (\S+)`).FindStringSubmatch(s.metrics(t))[1], 64)
		return n
	}
	begin := counts()
	eventually(t, opLimit, func() string {
		if counts() < begin+3 {
			return "usage is not counted"
		}
		return ""
	})
}

func (p *project) usage(t *testing.T) api.Project {
	t.Helper()
	v, err := p.s.Project(t.Context(), p.ID)
	must(t, err)
	return *v
}

func (p *project) branchUsage(t *testing.T, id string) api.Branch {
	t.Helper()
	v, err := p.s.Branch(t.Context(), p.ID, id)
	must(t, err)
	return *v
}

func position(t *testing.T, conn *pgx.Conn) int64 {
	t.Helper()
	l, err := core.ParseLSN(value[string](t, conn, "SELECT pg_current_wal_flush_lsn()::text"))
	must(t, err)
	return int64(l)
}

// balanced checks that hours, days, months, branches and projects tell the same.
func (s *server) balanced(t *testing.T) {
	t.Helper()
	db := s.controlDB(t)
	for what, query := range map[string]string{
		"hours and months": `SELECT count(*) FROM (SELECT project_id, branch_id, grain, sum(active_us) a, sum(written_bytes) w, sum(root_byte_hours) r
			FROM usage GROUP BY 1, 2, 3) u JOIN (SELECT project_id, branch_id, sum(active_us) a, sum(written_bytes) w, sum(root_byte_hours) r
			FROM usage WHERE grain = 'month' GROUP BY 1, 2) m USING (project_id, branch_id) WHERE (u.a, u.w, u.r) <> (m.a, m.w, m.r)`,
		"projects and branches": `SELECT count(*) FROM (SELECT project_id, sum(active_us) a, sum(compute_us) c, sum(written_bytes) w, sum(transfer_bytes) x
			FROM usage WHERE branch_id = '' GROUP BY 1) p JOIN (SELECT project_id, sum(active_us) a, sum(compute_us) c, sum(written_bytes) w, sum(transfer_bytes) x
			FROM usage WHERE branch_id <> '' GROUP BY 1) b USING (project_id) WHERE (p.a, p.c, p.w, p.x) <> (b.a, b.c, b.w, b.x)`,
	} {
		if n := value[int](t, db, query); n > 0 {
			t.Errorf("%s differ (%d)", what, n)
		}
	}
}

// TestMetering uses a known amount of everything and finds it in the fields of projects and branches.
func TestMetering(t *testing.T) {
	s := start(t, oftenMetered)
	p := s.project(t)
	conn := s.connect(t, p.URI)

	// WAL.
	s.counted(t)
	before, from := p.branchUsage(t, p.Branch), position(t, conn)
	sql(t, conn, "CREATE TABLE filler AS SELECT i, repeat('x', 1000) AS v FROM generate_series(1, 20000) i")
	wrote := position(t, conn) - from
	if wrote < 20<<20 {
		t.Fatalf("the test wrote %d bytes only", wrote)
	}
	s.counted(t)
	const slack = 1 << 20 // what the server itself writes meanwhile
	got := p.branchUsage(t, p.Branch).WrittenDataBytes - before.WrittenDataBytes
	if got < wrote-slack || got > wrote+slack {
		t.Errorf("%d bytes of WAL were written, %d counted", wrote, got)
	}

	// Transfer.
	const sent = 10_000_000
	before = p.branchUsage(t, p.Branch)
	if n := len(value[string](t, conn, "SELECT repeat('x', $1)", sent)); n != sent {
		t.Fatal(n)
	}
	s.counted(t)
	if n := p.branchUsage(t, p.Branch).DataTransferBytes - before.DataTransferBytes; n < sent || n > sent+100_000 {
		t.Errorf("%d bytes were transferred, %d counted", sent, n)
	}

	// A child has written what it wrote itself.
	child := p.branch(t, "")
	s.counted(t)
	if n := p.branchUsage(t, child.ID).WrittenDataBytes; n > slack {
		t.Errorf("a new branch has written %d bytes", n)
	}

	// Sizes.
	p.suspend(t, p.Endpoint)
	p.suspend(t, child.Endpoint)
	s.counted(t)
	root, all := p.branchUsage(t, p.Branch), p.usage(t)
	if root.LogicalSize == nil || *root.LogicalSize < 20<<20 {
		t.Errorf("the logical size is %v", root.LogicalSize)
	} else if all.SyntheticStorageSize == nil || *all.SyntheticStorageSize < *root.LogicalSize || *all.SyntheticStorageSize > 2**root.LogicalSize+64<<20 {
		t.Errorf("the project stores %v, its root branch %d", all.SyntheticStorageSize, *root.LogicalSize)
	} else if all.DataStorageBytesHour < *root.LogicalSize {
		t.Errorf("%d byte-hours, and the root branch has %d bytes", all.DataStorageBytesHour, *root.LogicalSize)
	}

	// Nothing is counted asleep.
	asleep := value[int64](t, s.controlDB(t), "SELECT active_us FROM usage WHERE project_id = $1 AND branch_id = '' AND grain = 'month'", p.ID)
	s.counted(t)
	if n := value[int64](t, s.controlDB(t), "SELECT active_us FROM usage WHERE project_id = $1 AND branch_id = '' AND grain = 'month'", p.ID); n != asleep || n == 0 {
		t.Errorf("the active time went from %d to %d µs while every compute was asleep", asleep, n)
	}
	if all.ActiveTimeSeconds < 1 || all.ComputeTimeSeconds != all.CPUUsedSec || all.ComputeTimeSeconds > 2*all.ActiveTimeSeconds {
		t.Errorf("active %d s, compute %d s", all.ActiveTimeSeconds, all.ComputeTimeSeconds)
	}
	if list, err := sdk.All(s.Projects(t.Context(), sdk.ProjectFilter{})); err != nil || list[0].ActiveTime != all.ActiveTimeSeconds || list[0].QuotaResetAt == nil ||
		!list[0].QuotaResetAt.Equal(all.ConsumptionPeriodEnd) {
		t.Errorf("the list shows %+v (%v)", list, err)
	}
	s.balanced(t)
}

// TestMeteringAcrossKills kills the server while a compute works on: time and WAL of the gap are counted, once.
func TestMeteringAcrossKills(t *testing.T) {
	s := start(t, oftenMetered)
	p := s.project(t)
	conn := s.connect(t, p.URI)
	sql(t, conn, "CREATE TABLE gap (v text)")
	s.counted(t)
	db := s.controlDB(t)
	active := func() time.Duration {
		return time.Duration(value[int64](t, s.controlDB(t), "SELECT active_us FROM usage WHERE branch_id = $1 AND grain = 'month'", p.Branch)) * time.Microsecond
	}
	began := value[time.Time](t, db, "SELECT run FROM compute_meters WHERE endpoint_id = $1", p.Endpoint)
	for range 3 {
		conn := s.connect(t, p.URI)
		s.counted(t)
		before, from := p.branchUsage(t, p.Branch).WrittenDataBytes, position(t, conn)
		// It goes on without its client.
		if _, err := conn.PgConn().Conn().Write(query("DO $$ BEGIN PERFORM pg_sleep(1); INSERT INTO gap SELECT repeat('x', 1000) FROM generate_series(1, 5000); END $$")); err != nil {
			t.Fatal(err)
		}
		eventually(t, opLimit, func() string {
			if value[int](t, s.connect(t, p.URI), "SELECT count(*)::int FROM pg_stat_activity WHERE query LIKE 'DO %' AND state = 'active'") == 0 {
				return "the work has not begun"
			}
			return ""
		})
		s.Kill9()
		s.Start()
		conn = s.connect(t, p.URI)
		eventually(t, opLimit, func() string {
			if value[int](t, conn, "SELECT count(*)::int FROM pg_stat_activity WHERE query LIKE 'DO %' AND state = 'active'") > 0 {
				return "the work is not done"
			}
			return ""
		})
		wrote := position(t, conn) - from
		s.counted(t)
		if n := p.branchUsage(t, p.Branch).WrittenDataBytes - before; wrote < 5<<20 || n < wrote-1<<20 || n > wrote+1<<20 {
			t.Errorf("%d bytes of WAL were written around a kill, %d counted", wrote, n)
		}
		if counted, ran := active(), time.Since(began); counted > ran || counted < ran-3*time.Second {
			t.Errorf("the compute has run for %v, %v are counted", ran, counted)
		}
	}

	// A compute that ends while no server watches has run until then.
	s.Term()
	pid := s.postmaster(t, p.Branch)
	began2 := time.Now()
	crash(t, pid)
	s.Start()
	s.counted(t)
	if counted, most := active(), began2.Add(5*time.Second).Sub(began); counted > most {
		t.Errorf("%v are counted of a compute that ran for less than %v", counted, most)
	}
	s.balanced(t)
}

// query is a Query message.
func query(sql string) []byte {
	n := len(sql) + 5
	return append(append([]byte{'Q', byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, sql...), 0)
}

// TestQuotas uses each quota up: the computes stop, and start again once it is raised.
func TestQuotas(t *testing.T) {
	s := start(t, oftenMetered)
	p := s.project(t)
	other := s.project(t)
	child := p.branch(t, "")
	p.suspend(t, child.Endpoint)
	set := func(name string, limit int64) {
		t.Helper()
		ask[any](t, s, "", "PATCH", "/projects/"+p.ID, fmt.Sprintf(`{"project":{"settings":{"quota":{%q:%d}}}}`, name, limit), 200)
	}
	conn := s.connect(t, p.URI)
	sql(t, conn, "CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 10000)")
	s.counted(t)

	used := p.usage(t)
	size := *p.branchUsage(t, child.ID).LogicalSize // without the filler
	for _, c := range []struct {
		name   string
		limit  int64
		exceed string
	}{
		{"written_data_bytes", used.WrittenDataBytes + 2<<20, "INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 5000)"},
		{"data_transfer_bytes", used.DataTransferBytes + 5_000_000, "SELECT repeat('x', 9000000)"},
		{"active_time_seconds", 1, ""},
		{"compute_time_seconds", 1, ""},
		{"logical_size_bytes", size + 5<<20, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := s.connect(t, p.URI)
			set(c.name, c.limit)
			if c.exceed != "" {
				_, _ = conn.Exec(t.Context(), c.exceed) // the quota may cut it short
			} else if c.name == "logical_size_bytes" {
				sql(t, conn, "INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 100)") // so that it is looked at
			}
			began := time.Now()
			p.awaitState(t, p.Endpoint, api.EndpointState("idle"))
			t.Logf("suspended after %v", time.Since(began).Round(time.Millisecond))
			_, err := s.tryConnect(t, p.URI)
			if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || !strings.Contains(pgErr.Message, c.name) {
				t.Errorf("a connection gets %v", err)
			}
			for _, action := range []string{"start", "restart"} {
				if r := s.raw(t, "", "POST", "/projects/"+p.ID+"/endpoints/"+p.Endpoint+"/"+action, ""); r.status != 422 || r.code != "QUOTA_EXCEEDED" || !strings.Contains(r.message, c.name) {
					t.Errorf("%s: %d %s %s", action, r.status, r.code, r.message)
				}
			}
			// The logical size is each branch's own.
			r := s.raw(t, "", "POST", "/projects/"+p.ID+"/endpoints/"+child.Endpoint+"/start", "")
			if want := map[bool]int{true: 200, false: 422}[c.name == "logical_size_bytes"]; r.status != want {
				t.Errorf("a branch without the data: %d %s", r.status, r.message)
			}
			set(c.name, 0)
			conn = s.connect(t, p.URI)
			if n := value[int](t, conn, "SELECT 1"); n != 1 {
				t.Error(n)
			}
		})
	}
	if r := s.raw(t, "", "PATCH", "/projects/"+p.ID, `{"project":{"settings":{"quota":{"active_time_seconds":-1}}}}`); r.status != 400 {
		t.Errorf("a negative quota: %d", r.status)
	}
	if v, err := s.Endpoint(t.Context(), other.ID, other.Endpoint); err != nil || v.CurrentState != "active" {
		t.Errorf("another project's compute is %+v, %v", v, err)
	}
	s.settled(t)
}

// TestConsumption asks for the history of usage in all the ways there are.
func TestConsumption(t *testing.T) {
	s := start(t, oftenMetered)
	p, second := s.project(t), s.project(t)
	child := p.branch(t, "")
	conn := s.connect(t, p.URI)
	sql(t, conn, "CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 5000)")
	value[string](t, conn, "SELECT repeat('x', 1000000)")
	p.suspend(t, p.Endpoint)
	s.counted(t)
	org := s.organization(t, "")
	now := time.Now().UTC()
	get := func(path string, status int, params url.Values) (body struct {
		Projects   []api.ProjectConsumptionV2
		Branches   []api.BranchConsumptionV2
		Pagination api.Pagination
	}) {
		t.Helper()
		q := url.Values{"from": {now.Add(-2 * time.Hour).Format(time.RFC3339)}, "to": {now.Add(time.Minute).Format(time.RFC3339)},
			"granularity": {"hourly"}, "org_id": {org}}
		for k, v := range params {
			q[k] = v
		}
		r := s.raw(t, "", "GET", "/consumption_history"+path+"?"+q.Encode(), "")
		if r.status != status {
			t.Fatalf("%s %v: %d %s, want %d", path, params, r.status, r.body, status)
		}
		_ = json.Unmarshal(r.body, &body)
		return body
	}
	sum := func(periods []api.ConsumptionPeriodV2, name string) (n int64) {
		for _, p := range periods {
			for _, f := range p.Consumption {
				for _, m := range f.Metrics {
					if m.MetricName == name {
						n += m.Value
					}
				}
			}
		}
		return n
	}
	const metrics = "root_branch_bytes_month,child_branch_bytes_month,instant_restore_bytes_month,public_network_transfer_bytes,private_network_transfer_bytes,compute_unit_seconds"

	both := get("/v2/projects", 200, url.Values{"metrics": {metrics + ",extra_branches_month,snapshot_storage_bytes_month"}})
	if len(both.Projects) != 2 || both.Projects[0].ProjectID != second.ID {
		t.Fatalf("two projects, the newest first: %+v", both)
	}
	first := both.Projects[1].Periods
	used := p.usage(t)
	if n := sum(first, "public_network_transfer_bytes"); n != used.DataTransferBytes || n < 1_000_000 {
		t.Errorf("transferred %d, the project says %d", n, used.DataTransferBytes)
	}
	if root, history := sum(first, "root_branch_bytes_month"), sum(first, "instant_restore_bytes_month"); root < 10<<20 || history == 0 {
		t.Errorf("root %d, history %d", root, history)
	}
	for _, granularity := range []string{"daily", "monthly"} {
		coarse := get("/v2/projects", 200, url.Values{"metrics": {metrics}, "granularity": {granularity}, "project_ids": {p.ID}})
		if len(coarse.Projects) != 1 || sum(coarse.Projects[0].Periods, "public_network_transfer_bytes") != used.DataTransferBytes {
			t.Errorf("%s: %+v", granularity, coarse)
		}
	}
	page := get("/v2/projects", 200, url.Values{"metrics": {"compute_unit_seconds"}, "limit": {"1"}})
	if len(page.Projects) != 1 || page.Projects[0].ProjectID != second.ID {
		t.Errorf("first page: %+v", page)
	}
	page = get("/v2/projects", 200, url.Values{"metrics": {"compute_unit_seconds"}, "limit": {"1"}, "cursor": {page.Pagination.Cursor}})
	if len(page.Projects) != 1 || page.Projects[0].ProjectID != p.ID {
		t.Errorf("second page: %+v", page)
	}
	if page = get("/v2/projects", 200, url.Values{"metrics": {"compute_unit_seconds"}, "cursor": {page.Pagination.Cursor}}); len(page.Projects) != 0 {
		t.Errorf("third page: %+v", page)
	}

	branches := get("/v2/branches", 200, url.Values{"metrics": {metrics}, "project_ids": {p.ID + "," + second.ID}})
	if len(branches.Branches) != 3 {
		t.Errorf("three branches: %+v", branches)
	}
	one := get("/v2/branches", 200, url.Values{"metrics": {"root_branch_bytes_month", "child_branch_bytes_month"}, "project_ids": {p.ID}, "branch_ids": {child.ID}})
	if len(one.Branches) != 1 || one.Branches[0].BranchID != child.ID || sum(one.Branches[0].Periods, "root_branch_bytes_month") != 0 {
		t.Errorf("the child: %+v", one)
	}

	r := ask[api.ConsumptionPerProject](t, s, "", "GET", "/consumption_history/projects?granularity=daily&include_v1_metrics=true&project_ids="+p.ID+
		"&from="+now.Format(time.DateOnly)+"T00:00:00Z&to="+now.Add(time.Minute).Format(time.RFC3339), "", 200)
	if len(r.Projects) != 1 || len(r.Projects[0].Periods) != 1 || len(r.Projects[0].Periods[0].Consumption) == 0 {
		t.Fatalf("legacy: %+v", r)
	}
	period := r.Projects[0].Periods[0]
	frame := period.Consumption[len(period.Consumption)-1]
	if period.PeriodEnd != nil || frame.DataStorageBytesHour == nil || frame.LogicalSizeBytes != nil || frame.SyntheticStorageSizeBytes < 10<<20 || frame.WrittenDataBytes != used.WrittenDataBytes {
		t.Errorf("legacy: %+v", period)
	}

	out, err := s.bough("consumption", p.ID, "--by", "month", "-o", "json")
	must(t, err)
	var shown []api.ConsumptionFrame
	if json.Unmarshal([]byte(out), &shown) != nil || len(shown) != 1 || shown[0].WrittenDataBytes != used.WrittenDataBytes {
		t.Errorf("the command line shows %s", out)
	}
	if out, err = s.bough("consumption", p.ID); err != nil || strings.Count(out, "\n") != 2 {
		t.Errorf("the command line shows %s (%v)", out, err)
	}
	_, err = s.bough("projects", "update", p.ID, "--quota", "active_time_seconds=360000,logical_size_bytes=0")
	must(t, err)
	if out, err = s.bough("projects", "get", p.ID); err != nil || !strings.Contains(out, "active_time_seconds=360000") || !strings.Contains(out, "transferred ") {
		t.Errorf("the command line shows %s (%v)", out, err)
	}

	for name, c := range map[string]struct {
		path   string
		status int
		params url.Values
	}{
		"no metrics":         {"/v2/projects", 400, nil},
		"unknown metric":     {"/v2/projects", 400, url.Values{"metrics": {"cpu"}}},
		"project's metric":   {"/v2/branches", 400, url.Values{"metrics": {"extra_branches_month"}, "project_ids": {p.ID}}},
		"no projects":        {"/v2/branches", 400, url.Values{"metrics": {"compute_unit_seconds"}}},
		"too long ago":       {"/v2/projects", 406, url.Values{"metrics": {"compute_unit_seconds"}, "from": {now.Add(-200 * time.Hour).Format(time.RFC3339)}}},
		"days ago":           {"/projects", 406, url.Values{"granularity": {"daily"}, "from": {now.AddDate(0, 0, -70).Format(time.RFC3339)}}},
		"years ago":          {"/projects", 406, url.Values{"granularity": {"monthly"}, "from": {now.AddDate(-2, 0, 0).Format(time.RFC3339)}}},
		"backwards":          {"/projects", 406, url.Values{"to": {now.Add(-3 * time.Hour).Format(time.RFC3339)}}},
		"no such grain":      {"/projects", 400, url.Values{"granularity": {"yearly"}}},
		"other organization": {"/projects", 404, url.Values{"org_id": {"org-none"}}},
		"bad cursor":         {"/projects", 400, url.Values{"cursor": {"x"}}},
		"large page":         {"/projects", 400, url.Values{"limit": {"101"}}},
		"no range":           {"/projects", 400, url.Values{"from": {""}}},
	} {
		t.Run(name, func(t *testing.T) { get(c.path, c.status, c.params) })
	}
}
