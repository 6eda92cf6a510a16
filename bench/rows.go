package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/sdk"
)

// timed measures one call.
func timed(f func() error) (time.Duration, error) {
	began := time.Now()
	err := f()
	return time.Since(began), err
}

// wake: a suspended endpoint's first row through the proxy, against a bare start of the same files.
func (b *bench) wake(ctx context.Context) ([]row, error) {
	if err := b.suspend(ctx, b.main); err != nil {
		return nil, err
	}
	p, err := b.plainCopy(ctx, b.main, "wake")
	if err != nil {
		return nil, err
	}
	var ours, bare series
	for range b.rounds {
		d, err := timed(func() error { return p.start(ctx) })
		if err != nil {
			return nil, err
		}
		bare = append(bare, d)
		if err := p.stop(); err != nil {
			return nil, err
		}
		if d, err = timed(func() error { return b.firstRow(ctx, b.main.uri) }); err != nil {
			return nil, err
		}
		ours = append(ours, d)
		if err := b.suspend(ctx, b.main); err != nil {
			return nil, err
		}
	}
	connect, err := b.connect(ctx, p)
	return []row{
		{"wake: suspended → first row", ours.String(), bare.String(), "bare postgres start", ratio(ours, bare), "≤ 1.5 ×, p50 ≤ 60 ms"},
		connect,
	}, err
}

// connect: a new session's first row on a running compute through the proxy, against a bare server's socket.
func (b *bench) connect(ctx context.Context, p *plain) (row, error) {
	if err := errors.Join(p.start(ctx), b.firstRow(ctx, b.main.uri)); err != nil {
		return row{}, err
	}
	var ours, bare series
	for range b.rounds {
		d, err := timed(func() error { return p.firstRow(ctx) })
		if err != nil {
			return row{}, err
		}
		bare = append(bare, d)
		if d, err = timed(func() error { return b.firstRow(ctx, b.main.uri) }); err != nil {
			return row{}, err
		}
		ours = append(ours, d)
	}
	return row{"connect: awake, TLS and SCRAM → first row", ours.String(), bare.String(), "bare server's socket, no password", ratio(ours, bare), ""}, p.stop()
}

// project: a new project's first row.
func (b *bench) project(ctx context.Context) ([]row, error) {
	var ours series
	for range b.rounds {
		var project string
		d, err := timed(func() error {
			created, err := b.client.CreateProject(ctx, sdk.ProjectCreate{})
			if err != nil {
				return err
			}
			project = created.Project.ID
			return b.firstRow(ctx, created.ConnectionUris[0].ConnectionURI)
		})
		if err != nil {
			return nil, err
		}
		ours = append(ours, d)
		if _, err := b.client.DeleteProject(ctx, project); err != nil {
			return nil, err
		}
	}
	initdb, err := b.initdb(ctx)
	if err != nil {
		return nil, err
	}
	return []row{{"project: call → first row", ours.String(), initdb.String(), "initdb and start", ratio(ours, initdb), "≤ 1 s"}}, nil
}

// initdb is what one does without templates: a new cluster and its start.
func (b *bench) initdb(ctx context.Context) (series, error) {
	var other series
	for i := range min(3, b.rounds) {
		p := &plain{b: b, dir: filepath.Join(b.dir, fmt.Sprint("initdb", i)), socket: filepath.Join(b.dir, "initdb.sock")}
		if err := postgres.OwnedDir(p.socket, b.cred); err != nil {
			return nil, err
		}
		d, err := timed(func() error {
			return postgres.CreateTemplate(ctx, b.build, postgres.InitOptions{DataDir: p.dir, Cred: b.cred}, b.dir)
		})
		if err != nil {
			return nil, err
		}
		started, err := timed(func() error { return p.start(ctx) })
		if err != nil {
			return nil, err
		}
		other = append(other, d+started)
		if err := p.stop(); err != nil {
			return nil, err
		}
	}
	return other, nil
}

// branchOnce measures a branch of the main target from the call to its first row, and deletes it.
func (b *bench) branchOnce(ctx context.Context) (time.Duration, error) {
	return b.branchOf(ctx, b.main.project, b.main.branch)
}

// branchOf is branchOnce of any branch.
func (b *bench) branchOf(ctx context.Context, project, parent string) (time.Duration, error) {
	var branch string
	d, err := timed(func() error {
		created, err := b.client.CreateBranch(ctx, project, sdk.BranchCreateRequest{
			Branch: &sdk.BranchCreate{ParentID: &parent}, Endpoints: &[]api.BranchCreateEndpoint{{Type: api.ReadWrite}},
		})
		if err != nil {
			return err
		}
		branch = created.Branch.ID
		return b.firstRow(ctx, (*created.ConnectionUris)[0].ConnectionURI)
	})
	if err != nil {
		return d, err
	}
	out, err := b.client.DeleteBranch(ctx, project, branch)
	if err != nil {
		return d, err
	}
	_, err = b.client.WaitForOperations(ctx, out.Operations, nil)
	return d, err
}

// branch: call to first row with an idle and with a sleeping parent, against CREATE DATABASE … TEMPLATE of the same data.
func (b *bench) branch(ctx context.Context) (rows []row, err error) {
	if err := b.suspend(ctx, b.main); err != nil {
		return nil, err
	}
	p, err := b.plainCopy(ctx, b.main, "branch")
	if err != nil {
		return nil, err
	}
	if err := p.start(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	admin, err := pgx.Connect(ctx, p.uri(postgres.AdminRole, postgres.AdminDatabase))
	if err != nil {
		return nil, err
	}
	defer admin.Close(ctx)
	var asleep, idle, template series
	for i := range b.rounds {
		d, err := b.branchOnce(ctx)
		if err != nil {
			return nil, err
		}
		asleep = append(asleep, d)
		if err := b.firstRow(ctx, b.main.uri); err != nil { // wakes the parent
			return nil, err
		}
		if d, err = b.branchOnce(ctx); err != nil {
			return nil, err
		}
		idle = append(idle, d)
		if err := b.suspend(ctx, b.main); err != nil {
			return nil, err
		}
		if i%4 != 0 {
			continue // a copy of the whole database each time
		}
		d, err = timed(func() error {
			if _, err := admin.Exec(ctx, "CREATE DATABASE copy TEMPLATE "+postgres.DefaultDatabase); err != nil {
				return err
			}
			return firstRowOf(ctx, p.uri(postgres.DefaultOwner, "copy"))
		})
		if err != nil {
			return nil, err
		}
		template = append(template, d)
		// What the copy left to be written is not the next round's burden.
		for _, sql := range []string{"DROP DATABASE copy", "CHECKPOINT"} {
			if _, err := admin.Exec(ctx, sql); err != nil {
				return nil, err
			}
		}
	}
	const other = "CREATE DATABASE … TEMPLATE"
	return []row{
		{"branch: call → first row, parent idle", idle.String(), template.String(), other, ratio(idle, template), "p50 ≤ 150 ms"},
		{"branch: call → first row, parent asleep", asleep.String(), template.String(), other, ratio(asleep, template), "p50 ≤ 150 ms"},
	}, nil
}

// branchUnderLoad: branches of a parent under pgbench, with the WAL distance that the child had to replay.
func (b *bench) branchUnderLoad(ctx context.Context) ([]row, error) {
	if err := b.resize(ctx, b.main, machineCU(), machineCU()); err != nil {
		return nil, err
	}
	load, err := b.startLoad(ctx, b.main.uri)
	if err != nil {
		return nil, err
	}
	defer load.stop()
	if err := sleep(ctx, time.Duration(b.seconds)*time.Second); err != nil { // let checkpoints and fragmentation set in
		return nil, err
	}
	var ours series
	var distances []int64
	for range b.rounds {
		n, err := b.walDistance(ctx)
		if err != nil {
			return nil, err
		}
		d, err := b.branchOnce(ctx)
		if err != nil {
			return nil, err
		}
		ours, distances = append(ours, d), append(distances, n>>20)
	}
	var low, high int64 = 1 << 62, 0
	for _, d := range distances {
		low, high = min(low, d), max(high, d)
	}
	return []row{{"branch under pgbench -c 8", ours.String(), fmt.Sprintf("%d–%d MiB", low, high), "WAL since the last redo point", "–", "p99 ≤ 1.5 s"}}, nil
}

// walDistance is how much WAL the main target's compute has written since its last checkpoint began, in bytes.
func (b *bench) walDistance(ctx context.Context) (int64, error) {
	conn, err := pgx.Connect(ctx, "host="+b.socket(b.main)+" user="+postgres.AdminRole+" dbname=postgres")
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx)
	var n int64
	err = conn.QueryRow(ctx, "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), redo_lsn)::bigint FROM pg_control_checkpoint()", pgx.QueryExecModeSimpleProtocol).Scan(&n)
	return n, err
}

// socket is the folder of a compute's socket, found by the name that every compute's folder has.
func (b *bench) socket(t *target) string {
	for _, pattern := range []string{"/run/bough/*/", filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "bough/*/"), filepath.Join(os.TempDir(), "bough-*/*/")} {
		if found, _ := filepath.Glob(pattern + t.endpoint); len(found) > 0 {
			return found[0]
		}
	}
	return ""
}

var tpsLine = regexp.MustCompile(`tps = ([0-9.]+)`)

// pgbench returns transactions per second.
func (b *bench) pgbench(ctx context.Context, uri string) (float64, error) {
	out, err := exec.CommandContext(ctx, b.pgbenchPath, "-n", "-c", "8", "-j", "2", "-T", strconv.Itoa(b.seconds), uri).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("pgbench: %w: %s", err, out)
	}
	m := tpsLine.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("pgbench printed no tps: %s", out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

// oltp: TPC-B of pgbench on a branch, straight and through the proxy, against the same files on the host's file system.
func (b *bench) oltp(ctx context.Context) (rows []row, err error) {
	created, err := b.client.CreateBranch(ctx, b.main.project, sdk.BranchCreateRequest{Endpoints: &[]api.BranchCreateEndpoint{{Type: api.ReadWrite, SuspendTimeoutSeconds: new(int64(-1))}}})
	if err != nil {
		return nil, err
	}
	if _, err := b.client.WaitForOperations(ctx, created.Operations, nil); err != nil {
		return nil, err
	}
	t := &target{b.main.project, created.Branch.ID, created.Endpoints[0].ID, (*created.ConnectionUris)[0].ConnectionURI}
	if err := b.resize(ctx, t, machineCU(), machineCU()); err != nil {
		return nil, err
	}
	if err := b.suspend(ctx, t); err != nil {
		return nil, err
	}
	p, err := b.plainCopy(ctx, t, "oltp")
	if err != nil {
		return nil, err
	}
	if err := b.suspend(ctx, b.main); err != nil { // nothing else runs
		return nil, err
	}
	if err := b.firstRow(ctx, t.uri); err != nil {
		return nil, err
	}
	if err := p.start(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	direct := fmt.Sprintf("host=%s user=%s dbname=%s", b.socket(t), postgres.DefaultOwner, postgres.DefaultDatabase)
	var straight, proxied, host []float64
	for range 3 {
		for _, one := range []struct {
			uri  string
			list *[]float64
		}{{direct, &straight}, {p.uri(postgres.DefaultOwner, postgres.DefaultDatabase), &host}, {t.uri, &proxied}} {
			tps, err := b.pgbench(ctx, one.uri)
			if err != nil {
				return nil, err
			}
			*one.list = append(*one.list, tps)
		}
	}
	line := func(what string, ours []float64, aim string) row {
		return row{what, tps(ours), tps(host), "same files on the host, socket", fmt.Sprintf("%.2f ×", median(ours)/median(host)), aim}
	}
	return []row{line("pgbench -c 8 on a branch, socket", straight, "≥ 0.9"), line("pgbench -c 8 on a branch, proxy with TLS", proxied, "")}, nil
}

func tps(v []float64) string { return fmt.Sprintf("%.0f TPS", median(v)) }

func median(v []float64) float64 {
	var s series
	for _, x := range v {
		s = append(s, time.Duration(x*1000))
	}
	return float64(s.at(0.5)) / 1000
}

// idle: what a sleeping endpoint costs.
func (b *bench) idle(ctx context.Context) ([]row, error) {
	created, err := b.client.CreateBranch(ctx, b.main.project, sdk.BranchCreateRequest{Endpoints: &[]api.BranchCreateEndpoint{{Type: api.ReadWrite}}})
	if err != nil {
		return nil, err
	}
	t := &target{b.main.project, created.Branch.ID, created.Endpoints[0].ID, (*created.ConnectionUris)[0].ConnectionURI}
	if err := b.firstRow(ctx, t.uri); err != nil {
		return nil, err
	}
	if err := b.suspend(ctx, t); err != nil {
		return nil, err
	}
	wal, err := diskUsage(filepath.Join(b.data, "wal", t.branch))
	if err != nil {
		return nil, err
	}
	volume := filepath.Join(b.data, "pool", "volumes", t.branch)
	if b.storage == "btrfs" {
		out, err := exec.CommandContext(ctx, "btrfs", "filesystem", "du", "-s", "--raw", volume).Output()
		if err != nil {
			return nil, fmt.Errorf("btrfs filesystem du: %w", err)
		}
		fields := strings.Fields(strings.Split(strings.TrimSpace(string(out)), "\n")[1])
		exclusive, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return nil, core.Wrap(err, "bench.idle", string(out))
		}
		return []row{{"a sleeping endpoint's disk", kib(exclusive + wal), fmt.Sprintf("%s + %s", kib(exclusive), kib(wal)), "volume + WAL; no process", "–", "≤ 2 MiB"}}, nil
	}
	n, err := diskUsage(volume)
	if err != nil {
		return nil, err
	}
	return []row{{"a sleeping endpoint's disk", kib(n + wal), fmt.Sprintf("%s + %s", kib(n), kib(wal)), "volume + WAL; no process", "–", "the size of the data, on copy"}}, nil
}

func kib(n int64) string { return fmt.Sprintf("%d KiB", n>>10) }

// diskUsage is the space that a folder's files take, in bytes.
func diskUsage(dir string) (int64, error) {
	var n int64
	err := filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			n += st.Blocks * 512
		}
		return nil
	})
	return n, err
}
