package metering_test

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/metering"
	"github.com/boughdb/bough/internal/pgtest"
	"github.com/boughdb/bough/internal/store"
	"github.com/boughdb/bough/internal/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m)) }

// machine says which computes run.
type machine struct {
	mu      sync.Mutex
	running []compute.Reading
	ended   []compute.Reading
}

// Readings completes what runs, with one size all the time, unless it says at what time it was read.
func (m *machine) Readings(now time.Time) (running, ended []compute.Reading) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.running {
		if r.At.IsZero() {
			r.At, r.Since, r.Compute = now, r.Run, time.Duration(float64(now.Sub(r.Run))*r.CU)
		}
		running = append(running, r)
	}
	ended, m.ended = m.ended, nil
	return running, ended
}

// database is a control database with a project of some branches, each with an endpoint.
func database(t testing.TB, branches int) *store.Store {
	t.Helper()
	c := pgtest.NewCluster(t, pgtest.Options{})
	s, err := store.Open(t.Context(), "postgres:///postgres?sslmode=disable&user=cloud_admin&host="+c.SocketDir, 4)
	check(t, err)
	t.Cleanup(s.Close)
	_, err = s.InsertOrganization(t.Context(), "org-meter", "h", "Org")
	check(t, err)
	check(t, storetest.Fill(t.Context(), s.Pool(), "org-meter", 1, branches))
	_, err = s.Pool().Exec(t.Context(), "TRUNCATE usage, branch_meters")
	check(t, err)
	return s
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func project() string               { return fmt.Sprintf(storetest.ProjectID, 0) }
func branch(n int) string           { return fmt.Sprintf(storetest.BranchID, 0, n) }
func endpoint(n int) string         { return "ep" + branch(n)[2:] }
func ago(d time.Duration) time.Time { return time.Now().UTC().Add(-d).Truncate(time.Microsecond) }

// used adds up the hours of the project, or of a branch.
func used(t testing.TB, s *store.Store, branchID string) (u core.Usage, hours int) {
	t.Helper()
	list, err := s.UsageHistory(t.Context(), []store.UsageOwner{{ProjectID: project(), BranchID: branchID}}, core.GrainHour, ago(100*time.Hour), time.Now())
	check(t, err)
	for _, f := range list {
		u.Active += f.Active
		u.Compute += f.Compute
		u.Written += f.Written
		u.Transferred += f.Transferred
		u.RootHours += f.RootHours
		u.ChildHours += f.ChildHours
		u.HistoryHours += f.HistoryHours
	}
	return u, len(list)
}

// A compute that runs for hours while nobody counts is counted once, to each hour its part, also by two servers at a time.
func TestTimeIsCountedOnce(t *testing.T) {
	s := database(t, 2)
	run := ago(5*time.Hour + 10*time.Minute)
	r := compute.Reading{EndpointID: endpoint(1), Run: run, CU: 0.5}
	first := metering.New(metering.Options{Store: s, Computes: &machine{running: []compute.Reading{r}}})
	second := metering.New(metering.Options{Store: s, Computes: &machine{running: []compute.Reading{r}}})
	var all sync.WaitGroup
	for range 5 {
		for _, m := range []*metering.Meter{first, second} {
			all.Go(func() { check(t, m.Count(t.Context())) })
		}
	}
	all.Wait()
	ran := time.Since(run)
	for _, of := range []string{"", branch(1)} {
		u, hours := used(t, s, of)
		if u.Active > ran || u.Active < ran-5*time.Second || hours < 6 || hours > 7 || (u.Compute-u.Active/2).Abs() > time.Millisecond {
			t.Errorf("%q ran for %v: counted %v in %d hours, %v compute", of, ran, u.Active, hours, u.Compute)
		}
	}

	// It ends; another run begins; the end is told late.
	end := time.Now()
	next := compute.Reading{EndpointID: endpoint(1), Run: end.UTC().Add(time.Millisecond).Truncate(time.Microsecond), At: end.Add(time.Minute), CU: 0.5}
	done := r
	done.At, done.Ended = end, true
	third := metering.New(metering.Options{Store: s, Computes: &machine{running: []compute.Reading{next}, ended: []compute.Reading{done}}})
	check(t, third.Count(t.Context()))
	check(t, third.Count(t.Context()))
	stale := metering.New(metering.Options{Store: s, Computes: &machine{ended: []compute.Reading{done}}})
	check(t, stale.Count(t.Context()))
	want := end.Sub(run) + time.Minute - time.Millisecond
	if u, _ := used(t, s, branch(1)); (u.Active - want).Abs() > time.Millisecond {
		t.Errorf("two runs of %v: %v counted", want, u.Active)
	}
}

// The size that counts is the average since the last count.
func TestComputeTimeFollowsTheSize(t *testing.T) {
	s := database(t, 1)
	run := ago(10 * time.Second)
	r := compute.Reading{EndpointID: endpoint(0), Run: run, Since: run, At: run.Add(4 * time.Second), Compute: 2 * time.Second, CU: 2}
	m := &machine{running: []compute.Reading{r}}
	meter := metering.New(metering.Options{Store: s, Computes: m})
	check(t, meter.Count(t.Context()))
	m.running[0].At, m.running[0].Compute = run.Add(8*time.Second), 10*time.Second
	check(t, meter.Count(t.Context()))
	if u, _ := used(t, s, ""); (u.Active-8*time.Second).Abs() > time.Millisecond || (u.Compute-10*time.Second).Abs() > time.Millisecond {
		t.Errorf("8 s of 10 unit-seconds: %v of %v counted", u.Active, u.Compute)
	}
}

// WAL counts from where the branch forked; what an earlier incarnation wrote, or an older look saw, does not.
func TestWALIsCountedOnce(t *testing.T) {
	s := database(t, 2)
	ctx := t.Context()
	check(t, s.StartBranchMeter(ctx, branch(1), project(), 1000))
	a := metering.New(metering.Options{Store: s, Computes: &machine{}})
	b := metering.New(metering.Options{Store: s, Computes: &machine{}})
	for _, m := range []*metering.Meter{a, b, a} {
		m.Wrote(branch(1), 5000)
		m.Wrote(branch(1), 4000) // late
		check(t, m.Count(ctx))
	}
	b.Wrote(branch(0), 7000) // never seen before: this is where counting begins
	check(t, b.Count(ctx))
	b.Wrote(branch(0), 7500)
	check(t, b.Count(ctx))
	if u, _ := used(t, s, ""); u.Written != 4500 {
		t.Errorf("4500 bytes were written, %d counted", u.Written)
	}

	// The branch begins anew at an earlier place.
	a.Wrote(branch(1), 6000)
	check(t, s.StartBranchMeter(ctx, branch(1), project(), 2000))
	check(t, a.Count(ctx))
	a.Wrote(branch(1), 2300)
	check(t, a.Count(ctx))
	if u, _ := used(t, s, branch(1)); u.Written != 4300 {
		t.Errorf("4300 bytes were written, %d counted", u.Written)
	}
}

// Byte-hours are the largest sizes of each hour, of hours in which nobody looked, too.
func TestByteHours(t *testing.T) {
	s := database(t, 2)
	ctx := t.Context()
	began, _ := core.Frame(core.GrainHour, time.Now())
	check(t, s.StartBranchMeter(ctx, branch(0), project(), 1000))
	check(t, s.StartBranchMeter(ctx, branch(1), project(), 1000))
	meter := metering.New(metering.Options{Store: s, Computes: &machine{}})
	for _, history := range []int64{100, 300, 200} { // the branches have 30 MB of data each
		meter.Sized(branch(0), history)
		meter.Wrote(branch(1), core.LSN(1000+history))
		check(t, meter.Count(ctx))
	}
	u, hours := used(t, s, "")
	if now, _ := core.Frame(core.GrainHour, time.Now()); !now.Equal(began) {
		return // an hour began meanwhile
	}
	if hours != 1 || u.RootHours != 30_000_000 || u.HistoryHours != 300 || u.ChildHours != 300 {
		t.Errorf("in %d hours: %+v", hours, u)
	}
	// Three hours ago, as it were.
	_, err := s.Pool().Exec(ctx, "UPDATE branch_meters SET hour = hour - interval '3 hours'; DELETE FROM usage")
	check(t, err)
	check(t, metering.New(metering.Options{Store: s, Computes: &machine{}}).Count(ctx))
	u, hours = used(t, s, "")
	if hours != 3 || u.RootHours != 3*30_000_000 || u.HistoryHours != 3*200 || u.ChildHours != 3*300 {
		t.Errorf("in %d hours: %+v", hours, u)
	}
	if size, err := s.ProjectUsage(ctx, ago(0), []string{project()}); err != nil || size[project()].Storage != 30_000_000+200+300 {
		t.Errorf("the project stores %+v (%v)", size, err)
	}
}

// What could not be counted is counted later.
func TestNothingIsLostWhenACountFails(t *testing.T) {
	s := database(t, 1)
	run := ago(time.Minute)
	m := &machine{ended: []compute.Reading{{EndpointID: endpoint(0), Run: run, At: run.Add(30 * time.Second), CU: 1, Ended: true}}}
	reports := 0
	var meter *metering.Meter
	meter = metering.New(metering.Options{Store: s, Computes: m, Report: func() { reports++; meter.Transferred(endpoint(0), 10) }})
	check(t, s.StartBranchMeter(t.Context(), branch(0), project(), 1000))
	meter.Wrote(branch(0), 1500)
	dead, cancel := context.WithCancel(t.Context())
	cancel()
	if err := meter.Count(dead); err == nil {
		t.Fatal("a count without a control database succeeded")
	}
	check(t, meter.Count(t.Context()))
	if u, _ := used(t, s, ""); u.Transferred != int64(10*reports) || u.Written != 500 || u.Active != 30*time.Second {
		t.Errorf("counted: %+v", u)
	}
	if c := meter.Counted(); c.Counts != 2 || c.Failures != 1 || c.Written != 500 {
		t.Errorf("totals: %+v", c)
	}
}

// BenchmarkCount counts 100 computes that run, each in use.
func BenchmarkCount(b *testing.B) {
	s := database(b, 100)
	m := &machine{}
	for i := range 100 {
		m.running = append(m.running, compute.Reading{EndpointID: endpoint(i), Run: ago(time.Minute), CU: 1})
		check(b, s.StartBranchMeter(b.Context(), branch(i), project(), 1000))
	}
	meter := metering.New(metering.Options{Store: s, Computes: m})
	lsn := core.LSN(1000)
	for b.Loop() {
		lsn += 1000
		for i := range 100 {
			meter.Wrote(branch(i), lsn)
			meter.Transferred(endpoint(i), 1000)
		}
		check(b, meter.Count(b.Context()))
	}
}
