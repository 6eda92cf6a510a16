package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

const (
	pageSize      = 8192
	pagesPerChild = 100
	branchEvery   = time.Second
	cleanLimit    = 30 * time.Minute
)

// deletes: TPS and branch creation on one project while another project's nested, changed children are cleaned up.
func (b *bench) deletes(ctx context.Context) ([]row, error) {
	victim, err := b.create(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range []*target{b.main, victim} { // what is measured is the storage
		if err := b.resize(ctx, t, machineCU(), machineCU()); err != nil {
			return nil, err
		}
	}
	if err := b.runPgbench(ctx, "-q", "-i", "-s", strconv.Itoa(b.childScale), victim.uri); err != nil {
		return nil, err
	}
	relation, err := b.relation(ctx, victim)
	if err != nil {
		return nil, err
	}
	if err := b.suspend(ctx, victim); err != nil {
		return nil, err
	}
	chain, err := b.chain(ctx, victim, relation)
	if err != nil {
		return nil, err
	}
	if err := b.firstRow(ctx, b.main.uri); err != nil {
		return nil, err
	}
	load, err := b.startLoad(ctx, b.main.uri)
	if err != nil {
		return nil, err
	}
	defer load.stop()
	window := time.Duration(b.seconds) * time.Second
	if err := sleep(ctx, window/2); err != nil { // checkpoints and fragmentation set in
		return nil, err
	}
	before, err := b.underCleaning(ctx, load, func() (bool, error) { return false, nil }, 3*window)
	if err != nil {
		return nil, err
	}
	called := time.Now()
	deleted := make(chan error, 1)
	go func() {
		for i := len(chain) - 1; i >= 0; i-- {
			out, err := b.client.DeleteBranch(ctx, victim.project, chain[i])
			if err == nil {
				_, err = b.client.WaitForOperations(ctx, out.Operations, nil)
			}
			if err != nil {
				deleted <- err
				return
			}
		}
		deleted <- nil
	}()
	var calls time.Duration
	during, err := b.underCleaning(ctx, load, func() (bool, error) {
		select {
		case err := <-deleted:
			if err != nil {
				return false, err
			}
			calls = time.Since(called)
			deleted = nil
		default:
		}
		if calls == 0 {
			return false, nil
		}
		n, err := b.waitingToBeCleaned(ctx)
		return n == 0, err
	}, cleanLimit)
	if err != nil {
		return nil, err
	}
	took := time.Since(called)
	what := fmt.Sprintf("while %d nested children are deleted (calls %s, cleaned after %s)", len(chain), ms(calls), ms(took))
	return []row{
		{"pgbench -c 8 " + what, tps([]float64{during.tps}), tps([]float64{before.tps}), "before",
			fmt.Sprintf("%.2f ×", during.tps/before.tps), "≥ 0.8"},
		{"branch of it, " + what, during.branches.String(), before.branches.String(), "before", ratio(during.branches, before.branches), "≤ 2 ×"},
		{"  the slowest", ms(during.branches.at(1)), ms(before.branches.at(1)), "before", "", ""},
		{"  p99", ms(during.branches.at(0.99)), ms(before.branches.at(0.99)), "before",
			fmt.Sprintf("%.2f ×", float64(during.branches.at(0.99))/float64(max(1, before.branches.at(0.99)))), "≤ 2 ×"},
	}, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// relation is the path of pgbench_accounts in the data directory.
func (b *bench) relation(ctx context.Context, t *target) (string, error) {
	conn, err := pgx.Connect(ctx, "host="+b.socket(t)+" user=cloud_admin dbname=neondb")
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	var path string
	err = conn.QueryRow(ctx, "SELECT pg_relation_filepath('pgbench_accounts')", pgx.QueryExecModeSimpleProtocol).Scan(&path)
	return path, err
}

// chain makes nested children of a sleeping branch and writes some pages of each anew, with their own content: to the file
// system they have changed, to PostgreSQL they have not.
func (b *bench) chain(ctx context.Context, t *target, relation string) ([]string, error) {
	ids := make([]string, 0, b.children)
	parent := t.branch
	for i := range b.children {
		created, err := b.client.CreateBranch(ctx, t.project, sdk.BranchCreateRequest{Branch: &sdk.BranchCreate{ParentID: &parent}})
		if err != nil {
			return nil, err
		}
		if _, err := b.client.WaitForOperations(ctx, created.Operations, nil); err != nil {
			return nil, err
		}
		parent = created.Branch.ID
		ids = append(ids, parent)
		if err := rewritePages(filepath.Join(b.data, "pool", "volumes", parent, relation)); err != nil {
			return nil, err
		}
		if i%100 == 99 {
			fmt.Fprintf(os.Stderr, "  %d children …\n", i+1)
		}
	}
	return ids, nil
}

func rewritePages(path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	page := make([]byte, pageSize)
	for range pagesPerChild {
		at := rand.Int64N(info.Size()/pageSize) * pageSize
		if _, err := f.ReadAt(page, at); err != nil {
			return err
		}
		if _, err := f.WriteAt(page, at); err != nil {
			return err
		}
	}
	return f.Sync()
}

// waitingToBeCleaned counts deleted volumes whose space is not free yet.
func (b *bench) waitingToBeCleaned(ctx context.Context) (int, error) {
	entries, err := os.ReadDir(filepath.Join(b.data, "pool", "deleting"))
	if err != nil || b.storage != "btrfs" {
		return len(entries), err
	}
	out, err := exec.CommandContext(ctx, "btrfs", "subvolume", "list", "-d", filepath.Join(b.data, "pool")).Output()
	if err != nil {
		return 0, fmt.Errorf("btrfs subvolume list: %w", err)
	}
	return len(entries) + strings.Count(string(out), "\n"), nil
}

// cleaning is what others feel meanwhile.
type cleaning struct {
	tps      float64
	branches series
}

// underCleaning makes a branch of the main project every second until done says so, and looks at the load meanwhile.
func (b *bench) underCleaning(ctx context.Context, load *load, done func() (bool, error), limit time.Duration) (cleaning, error) {
	var out cleaning
	var made []string
	began := time.Now()
	from := load.mark()
	tick := time.NewTicker(branchEvery)
	defer tick.Stop()
	for time.Since(began) < limit {
		d, err := timed(func() error {
			created, err := b.client.CreateBranch(ctx, b.main.project, sdk.BranchCreateRequest{})
			if err != nil {
				return err
			}
			made = append(made, created.Branch.ID)
			_, err = b.client.WaitForOperations(ctx, created.Operations, nil)
			return err
		})
		if err != nil {
			return out, err
		}
		out.branches = append(out.branches, d)
		if end, err := done(); err != nil {
			return out, err
		} else if end {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return out, ctx.Err()
		}
	}
	out.tps = load.since(from)
	return out, nil
}

// load is a running pgbench.
type load struct {
	cmd *exec.Cmd

	mu   sync.Mutex
	tps  []float64 // of each second
	rest []string
}

func (b *bench) startLoad(ctx context.Context, uri string) (*load, error) {
	l := &load{cmd: exec.CommandContext(ctx, b.pgbenchPath, "-n", "-c", "8", "-j", "2", "-P", "1", "-T", "7200", uri)}
	out, err := l.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := l.cmd.Start(); err != nil {
		return nil, err
	}
	go l.read(out)
	return l, nil
}

func (l *load) read(r io.Reader) {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		var at, tps float64
		l.mu.Lock()
		if _, err := fmt.Sscanf(sc.Text(), "progress: %f s, %f tps", &at, &tps); err == nil {
			l.tps = append(l.tps, tps)
		} else {
			l.rest = append(l.rest, sc.Text())
		}
		l.mu.Unlock()
	}
}

func (l *load) mark() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.tps)
}

// since is the mean since a mark.
func (l *load) since(mark int) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	sum := 0.0
	for _, v := range l.tps[mark:] {
		sum += v
	}
	return sum / float64(max(1, len(l.tps)-mark))
}

func (l *load) stop() {
	_ = l.cmd.Process.Signal(syscall.SIGINT)
	_ = l.cmd.Wait()
}

// churn: branches with a compute that are made and suspended at once, many side by side.
func (b *bench) churn(ctx context.Context) ([]row, error) {
	// The parent is awake and idle, and has nothing to replay.
	if err := errors.Join(b.suspend(ctx, b.main), b.firstRow(ctx, b.main.uri)); err != nil {
		return nil, err
	}
	n := max(100, 5*b.rounds)
	// Callers who look now and then: sixteen that ask every two milliseconds would be the load.
	patient, err := sdk.New(sdk.Options{BaseURL: b.api, APIKey: b.key, PollWait: 50 * time.Millisecond})
	if err != nil {
		return nil, err
	}
	work := make(chan struct{}, n)
	for range n {
		work <- struct{}{}
	}
	close(work)
	var group sync.WaitGroup
	errs := make(chan error, b.clients)
	began := time.Now()
	for range b.clients {
		group.Go(func() {
			for range work {
				if err := b.churnOnce(ctx, patient); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	group.Wait()
	took := time.Since(began)
	select {
	case err := <-errs:
		return nil, err
	default:
	}
	return []row{{fmt.Sprintf("create + suspend, %d clients", b.clients), fmt.Sprintf("%.1f a second", float64(n)/took.Seconds()), "", "", "–", "≥ 20"}}, nil
}

func (b *bench) churnOnce(ctx context.Context, client *sdk.Client) error {
	created, err := client.CreateBranch(ctx, b.main.project, sdk.BranchCreateRequest{
		Endpoints: &[]api.BranchCreateEndpoint{{Type: api.ReadWrite}},
	})
	if err != nil {
		return err
	}
	if _, err := client.WaitForOperations(ctx, created.Operations, nil); err != nil {
		return err
	}
	out, err := client.SuspendEndpoint(ctx, b.main.project, created.Endpoints[0].ID)
	if err != nil {
		return err
	}
	_, err = client.WaitForOperations(ctx, out.Operations, nil)
	return err
}
