package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

// group returns a file of a compute's control group, found by the endpoint's name; "" when there is none.
func group(endpoint, v1, v2 string) string {
	for _, pattern := range []string{filepath.Join("/sys/fs/cgroup/*/bough/*", endpoint, v1), filepath.Join("/sys/fs/cgroup/bough/*", endpoint, v2)} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			if raw, err := os.ReadFile(found[0]); err == nil {
				return strings.TrimSpace(string(raw))
			}
		}
	}
	return ""
}

// cpuLimit is the share of a processor that an endpoint's group may use, "" for all or no group.
func cpuLimit(endpoint string) string {
	quota, period, ok := strings.Cut(group(endpoint, "cpu.cfs_quota_us", "cpu.max"), " ")
	if !ok {
		period = group(endpoint, "cpu.cfs_period_us", "")
	}
	q, err1 := strconv.ParseFloat(quota, 64)
	p, err2 := strconv.ParseFloat(period, 64)
	if err1 != nil || err2 != nil || q <= 0 {
		return ""
	}
	return strconv.FormatFloat(q/p, 'g', -1, 64)
}

// limits asks for compute units.
func limits(lo, hi float64) sdk.EndpointUpdate {
	a, b := api.ComputeUnits(lo), api.ComputeUnits(hi)
	return sdk.EndpointUpdate{AutoscalingLimitMinCU: &a, AutoscalingLimitMaxCU: &b}
}

// size is what the API says of a running endpoint's size.
func (p *project) size(t *testing.T) (cu float64, note string) {
	t.Helper()
	e, err := p.s.Endpoint(t.Context(), p.ID, p.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	if e.Runtime == nil || e.Runtime.SizeCU == nil {
		return 0, ""
	}
	if e.Runtime.SizeNote != nil {
		note = *e.Runtime.SizeNote
	}
	return *e.Runtime.SizeCU, note
}

func TestSizes(t *testing.T) {
	s := start(t)
	status, err := s.bough("status")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(status, "compute sizes     enforced") {
		why := status[strings.Index(status, "compute sizes"):]
		why, _, _ = strings.Cut(why, "\n")
		if isRoot() && group("..", "cgroup.procs", "") != "" || !strings.Contains(why, "not enforced: ") {
			t.Fatalf("status says: %s", why)
		}
		p := s.project(t)
		if _, note := p.size(t); !strings.Contains(note, "not enforced") {
			t.Errorf("the endpoint's note says %q", note)
		}
		t.Skip("needs root and cgroup controllers; without them the server says so: " + why)
	}
	p := s.project(t)
	p.ops(t)(s.UpdateEndpoint(t.Context(), p.ID, p.Endpoint, limits(0.25, 0.25)))
	if cu, note := p.size(t); cu != 0.25 || note != "" {
		t.Errorf("the endpoint's size is %v, %q", cu, note)
	}
	if got := cpuLimit(p.Endpoint); got != "0.25" {
		t.Errorf("the endpoint's share of a processor is %q", got)
	}
	if got := group(p.Endpoint, "memory.limit_in_bytes", "memory.max"); got != strconv.Itoa(1<<30) {
		t.Errorf("the endpoint's memory is %s; want 1 GiB", got)
	}

	t.Run("refused limits", func(t *testing.T) {
		pid := s.postmaster(t, p.Branch)
		for body, says := range map[string]string{
			`{"endpoint":{"autoscaling_limit_min_cu":2,"autoscaling_limit_max_cu":1}}`:                         "must not be greater",
			`{"endpoint":{"autoscaling_limit_min_cu":0.2,"autoscaling_limit_max_cu":1}}`:                       "0.25",
			`{"endpoint":{"provisioner":"k8s-pod","autoscaling_limit_min_cu":1,"autoscaling_limit_max_cu":2}}`: "fixed size",
			`{"endpoint":{"autoscaling_limit_min_cu":1,"autoscaling_limit_max_cu":1e300}}`:                     "",
			`{"endpoint":{"autoscaling_limit_min_cu":-1}}`:                                                     "0.25",
			`{"endpoint":{"autoscaling_limit_max_cu":"many"}}`:                                                 "",
		} {
			r := s.raw(t, s.admin.APIKey, "PATCH", "/projects/"+p.ID+"/endpoints/"+p.Endpoint, body)
			if r.status != 400 || !strings.Contains(string(r.body), says) {
				t.Errorf("%s: %d %s", body, r.status, r.body)
			}
		}
		if s.postmaster(t, p.Branch) != pid || cpuLimit(p.Endpoint) != "0.25" {
			t.Error("a refused request changed the running compute")
		}
	})

	t.Run("follows the load", func(t *testing.T) {
		p.ops(t)(s.UpdateEndpoint(t.Context(), p.ID, p.Endpoint, limits(0.25, 56)))
		if _, note := p.size(t); !strings.Contains(note, "more than this machine has") {
			t.Errorf("the note says %q", note)
		}
		pid := s.postmaster(t, p.Branch)
		idle := s.connect(t, p.URI)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 2)
		for range 2 {
			busy := s.connect(t, p.URI)
			go func() {
				var err error
				for ctx.Err() == nil && err == nil {
					_, err = busy.Exec(t.Context(), "select sum(i) from generate_series(1, 50000) i")
				}
				ended <- err
			}()
		}
		began := time.Now()
		eventually(t, 2*time.Minute, func() string {
			if cu, _ := p.size(t); cu <= 0.25 || cpuLimit(p.Endpoint) == "0.25" {
				return "load does not make the compute larger"
			}
			return ""
		})
		t.Logf("larger after %v", time.Since(began).Round(100*time.Millisecond))
		shown := s.metrics(t)
		if !strings.Contains(shown, `bough_compute_size_cu{endpoint="`+p.Endpoint+`"}`) || strings.Contains(shown, `bough_autoscale_total{direction="up"} 0`) {
			t.Error("metrics do not show it")
		}
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Errorf("a busy session was cut off: %v", err)
			}
		}
		if err := idle.Ping(t.Context()); err != nil {
			t.Errorf("an idle session was cut off: %v", err)
		}
		s.Restart()
		if cu, _ := p.size(t); cu <= 0.25 {
			t.Errorf("after a restart of the server the size is %v", cu)
		}
		if now := s.postmaster(t, p.Branch); now != pid {
			t.Error("the compute was restarted")
		}
	})

	t.Run("limits without a restart", func(t *testing.T) {
		q := s.project(t)
		q.ops(t)(s.UpdateEndpoint(t.Context(), q.ID, q.Endpoint, limits(0.25, 1)))
		pid, conn := s.postmaster(t, q.Branch), s.connect(t, q.URI)
		out, err := s.UpdateEndpoint(t.Context(), q.ID, q.Endpoint, limits(0.5, 1))
		if err != nil || len(out.Operations) != 0 {
			t.Fatalf("%d operations, %v; want none", len(out.Operations), err)
		}
		if cu, _ := q.size(t); cu < 0.5 || cpuLimit(q.Endpoint) == "0.25" { // load may have made it larger
			t.Errorf("size %v, share of a processor %q", cu, cpuLimit(q.Endpoint))
		}
		if err := conn.Ping(t.Context()); err != nil || s.postmaster(t, q.Branch) != pid {
			t.Errorf("the compute was restarted: %v", err)
		}
		q.suspend(t, q.Endpoint)
		if got := group(q.Endpoint, "cgroup.procs", "cgroup.procs"); got != "" {
			t.Errorf("a sleeping compute's group holds %s", got)
		}
		if dirs, _ := filepath.Glob("/sys/fs/cgroup/*/bough/*/" + q.Endpoint); len(dirs) > 0 {
			t.Errorf("a sleeping compute has groups: %v", dirs)
		}
	})
}

// With --cgroups=off the server says that it enforces nothing, and takes the limits of an earlier one off.
func TestSizesOff(t *testing.T) {
	s := prepare(t, backend())
	with := s.args
	s.Start()
	p := s.project(t)
	p.ops(t)(s.UpdateEndpoint(t.Context(), p.ID, p.Endpoint, limits(0.25, 0.25)))
	s.Term()
	s.args = append(append([]string{}, with...), "--cgroups=off")
	s.Start()
	if cu, note := p.size(t); cu != 0.25 || !strings.Contains(note, "not enforced: --cgroups is off") {
		t.Errorf("size %v, %q", cu, note)
	}
	if got := cpuLimit(p.Endpoint); got != "" {
		t.Errorf("the compute's share of a processor is still %s", got)
	}
	if out, err := s.bough("status"); err != nil || !strings.Contains(out, "not enforced: --cgroups is off") {
		t.Errorf("status: %v\n%s", err, out)
	}
	if log := tail(s.logFile(), 1<<20); !strings.Contains(log, "not enforced") {
		t.Error("the log does not say it")
	}
	s.args = append(append([]string{}, with...), "--cgroups=maybe")
	s.Term()
	if err := s.tryStart(); err == nil {
		t.Error("--cgroups=maybe was taken")
	}
	s.args = with
	s.Start()
}
