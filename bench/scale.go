package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/sdk"
)

// fleet makes n branches of the main project with an endpoint each, all asleep, under one child that sleeps too.
func (b *bench) fleet(ctx context.Context, n int) ([]*target, error) {
	if err := b.suspend(ctx, b.main); err != nil {
		return nil, err
	}
	out := make([]*target, n)
	next := make(chan int, n)
	for i := range n {
		next <- i
	}
	close(next)
	errs := make(chan error, b.clients)
	var group sync.WaitGroup
	for range b.clients {
		group.Go(func() {
			for i := range next {
				created, err := b.client.CreateBranch(ctx, b.main.project, sdk.BranchCreateRequest{
					Endpoints: &[]api.BranchCreateEndpoint{{Type: api.ReadWrite, SuspendTimeoutSeconds: new(int64(-1))}},
				})
				if err == nil {
					_, err = b.client.WaitForOperations(ctx, created.Operations, nil)
				}
				if err != nil {
					errs <- err
					return
				}
				out[i] = &target{b.main.project, created.Branch.ID, created.Endpoints[0].ID, (*created.ConnectionUris)[0].ConnectionURI}
				if err := b.suspend(ctx, out[i]); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	group.Wait()
	select {
	case err := <-errs:
		return nil, err
	default:
		return out, nil
	}
}

// storm: many sleeping computes whose clients all come in the same second, and what each costs once it is awake and idle.
func (b *bench) storm(ctx context.Context) ([]row, error) {
	fleet, err := b.fleet(ctx, b.awake)
	if err != nil {
		return nil, err
	}
	idle, err := b.memoryAvailable()
	if err != nil {
		return nil, err
	}
	took := make(series, len(fleet))
	errs := make(chan error, len(fleet))
	var group sync.WaitGroup
	for i, t := range fleet {
		group.Go(func() {
			if err := sleep(ctx, time.Second*time.Duration(i)/time.Duration(len(fleet))); err != nil {
				errs <- err
				return
			}
			var err error
			if took[i], err = timed(func() error { return b.firstRow(ctx, t.uri) }); err != nil {
				errs <- err
			}
		})
	}
	group.Wait()
	close(errs)
	failed := 0
	var first error
	for err := range errs {
		failed++
		first = errors.Join(first, err)
		if failed > 3 {
			break
		}
	}
	if failed > 0 {
		return nil, fmt.Errorf("%d of %d wakes failed: %w", failed, len(fleet), first)
	}
	rows := []row{{fmt.Sprintf("%d wakes in one second → first row", len(fleet)),
		fmt.Sprintf("first %s  p50 %s  last %s", ms(took.at(0)), ms(took.at(0.5)), ms(took.at(1))), "", "", "–", "last ≤ 30 s"}}
	memory, err := b.memory(ctx, fleet, idle)
	return append(rows, memory...), err
}

// memory compares what an awake, idle compute costs with a stock server.
func (b *bench) memory(ctx context.Context, fleet []*target, before int64) ([]row, error) {
	if err := sleep(ctx, 15*time.Second); err != nil { // looks of the monitor, the first autovacuum
		return nil, err
	}
	now, err := b.memoryAvailable()
	if err != nil {
		return nil, err
	}
	var ours usage
	for _, t := range fleet {
		u, err := serverUsage(filepath.Join(b.data, "pool", "volumes", t.branch))
		if err != nil {
			return nil, err
		}
		ours.add(u)
	}
	n := len(fleet)
	stock := &plain{b: b, dir: filepath.Join(b.dir, "stock"), socket: filepath.Join(b.dir, "stock.sock"), stock: true}
	if err := errors.Join(
		postgres.OwnedDir(stock.socket, b.cred),
		postgres.InitDB(ctx, b.build, postgres.InitOptions{DataDir: stock.dir, Cred: b.cred}),
		os.WriteFile(filepath.Join(stock.dir, "postgresql.conf"), nil, 0o600),
	); err != nil {
		return nil, err
	}
	if err := stock.start(ctx); err != nil {
		return nil, err
	}
	var plainUse usage
	if err = sleep(ctx, 5*time.Second); err == nil {
		plainUse, err = serverUsage(stock.dir)
	}
	if err = errors.Join(err, stock.stop()); err != nil {
		return nil, err
	}
	return []row{
		{fmt.Sprintf("memory of an awake, idle compute (of %d)", n), ours.over(n).String(), plainUse.String(), "stock initdb && postgres",
			fmt.Sprintf("%.2f ×", float64(ours.pss)/float64(n)/float64(plainUse.pss)), ""},
		{"  the machine's available memory, less by", mibs((before - now) / int64(n)), "", "", "", ""},
	}, nil
}

func (b *bench) memoryAvailable() (int64, error) {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("/proc/meminfo names no MemAvailable")
}

// usage is the memory of a server's processes, in bytes. Pss counts shared pages in equal parts among those who map them.
type usage struct {
	processes    int
	pss, private int64
	shmem        int64 // proportional, shared memory
}

func (u *usage) add(v usage) {
	u.processes += v.processes
	u.pss += v.pss
	u.private += v.private
	u.shmem += v.shmem
}

func (u usage) over(n int) usage {
	return usage{u.processes / n, u.pss / int64(n), u.private / int64(n), u.shmem / int64(n)}
}

func (u usage) String() string {
	return fmt.Sprintf("PSS %s (private %s, shared memory %s), %d processes", mibs(u.pss), mibs(u.private), mibs(u.shmem), u.processes)
}

func mibs(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// serverUsage adds up the processes that work in a data directory.
func serverUsage(dataDir string) (usage, error) {
	var u usage
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return u, err
	}
	for _, dir := range dirs {
		if cwd, err := os.Readlink(filepath.Join(dir, "cwd")); err != nil || cwd != dataDir {
			continue
		}
		f, err := os.Open(filepath.Join(dir, "smaps_rollup"))
		if err != nil {
			continue
		}
		sc := bufio.NewScanner(f)
		seen := false
		for sc.Scan() {
			fields := strings.Fields(sc.Text())
			if len(fields) < 3 || fields[2] != "kB" {
				continue
			}
			kb, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				continue
			}
			seen = true
			switch fields[0] {
			case "Pss:":
				u.pss += kb << 10
			case "Pss_Shmem:":
				u.shmem += kb << 10
			case "Private_Clean:", "Private_Dirty:":
				u.private += kb << 10
			}
		}
		_ = f.Close()
		if seen {
			u.processes++
		}
	}
	return u, nil
}

// many: branches of one parent made one after another; the list of them.
func (b *bench) many(ctx context.Context) ([]row, error) {
	if err := b.suspend(ctx, b.main); err != nil {
		return nil, err
	}
	created := make(series, 0, b.branches)
	for i := range b.branches {
		d, err := timed(func() error {
			out, err := b.client.CreateBranch(ctx, b.main.project, sdk.BranchCreateRequest{
				Endpoints: &[]api.BranchCreateEndpoint{{Type: api.ReadWrite}},
			})
			if err != nil {
				return err
			}
			if _, err := b.client.WaitForOperations(ctx, out.Operations, nil); err != nil {
				return err
			}
			return b.suspend(ctx, &target{b.main.project, out.Branch.ID, out.Endpoints[0].ID, ""})
		})
		if err != nil {
			return nil, err
		}
		created = append(created, d)
		if i%100 == 99 {
			fmt.Fprintf(os.Stderr, "  %d branches, the last hundred %s\n", i+1, created[i-99:])
		}
	}
	var list series
	for range b.rounds {
		d, err := timed(func() error {
			return b.list(ctx)
		})
		if err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	restart, err := b.restart(ctx)
	if err != nil {
		return nil, err
	}
	k := min(100, len(created))
	early, late := created[:k], created[len(created)-k:]
	return []row{
		{fmt.Sprintf("create + suspend: the last %d of %d branches, one after another", k, len(created)), late.String(), early.String(),
			fmt.Sprintf("the first %d", k), ratio(late, early), "flat"},
		{fmt.Sprintf("GET …/branches, %d branches", len(created)), list.String(), "", "", "–", ""},
		{fmt.Sprintf("kill -9 and restart of the server, %d branches", len(created)), ms(restart), "", "", "–", ""},
	}, nil
}

// list reads all branches of the main project in one request.
func (b *bench) list(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.api+"/projects/"+b.main.project+"/branches", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+b.key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var page struct {
		Branches []json.RawMessage `json:"branches"`
	}
	if err := json.NewDecoder(res.Body).Decode(&page); err != nil {
		return err
	}
	if len(page.Branches) < b.branches {
		return fmt.Errorf("%d of %d branches are listed", len(page.Branches), b.branches)
	}
	return nil
}
