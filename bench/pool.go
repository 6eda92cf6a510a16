package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// poolRun is one way of running pgbench. PgBouncer 1.18 cannot share prepared statements: it gets the extended protocol then.
type poolRun struct {
	name          string
	clients       int
	ours, bouncer []string
	aim           string
}

// pool: pgbench -S through the pooled host against PgBouncer in transaction mode, in front of the same compute, TLS on both.
func (b *bench) pool(ctx context.Context) (rows []row, err error) {
	if _, err := exec.LookPath("pgbouncer"); err != nil {
		return nil, errors.New("pgbouncer is not installed")
	}
	if err := b.resize(ctx, b.main, machineCU(), machineCU()); err != nil {
		return nil, err
	}
	pooled := strings.Replace(b.main.uri, b.main.endpoint+".", b.main.endpoint+"-pooler.", 1)
	direct := strings.Replace(b.main.uri, "-pooler.", ".", 1)
	if err := b.firstRow(ctx, direct); err != nil {
		return nil, err
	}
	bouncer, stop, err := b.startBouncer(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()

	var runs []poolRun
	for _, n := range []int{1, 10, 200, 1000} {
		aim := "≥ 1.0"
		if n == 1000 {
			aim = "≥ 1.2"
		}
		runs = append(runs,
			poolRun{"simple", n, []string{"-S", "-M", "simple"}, []string{"-S", "-M", "simple"}, aim},
			poolRun{"prepared", n, []string{"-S", "-M", "prepared"}, []string{"-S", "-M", "extended"}, aim})
	}
	runs = append(runs, poolRun{"a connection each, -C", 4, []string{"-S", "-C"}, []string{"-S", "-C"}, "≥ 1.0"})
	for _, run := range runs {
		var ours, theirs []float64
		for range 3 {
			a, err := b.poolbench(ctx, pooled, run.clients, run.ours)
			if err != nil {
				return nil, err
			}
			c, err := b.poolbench(ctx, bouncer, run.clients, run.bouncer)
			if err != nil {
				return nil, err
			}
			ours, theirs = append(ours, a), append(theirs, c)
			fmt.Fprintf(os.Stderr, "  %d clients, %s: %.0f, PgBouncer %.0f\n", run.clients, run.name, a, c)
		}
		rows = append(rows, row{fmt.Sprintf("pgbench -S, %d clients, %s", run.clients, run.name), tps(ours), tps(theirs),
			"PgBouncer, transaction mode", fmt.Sprintf("%.2f ×", median(ours)/median(theirs)), run.aim})
	}
	var added [3]series
	for range 3 {
		for i, uri := range []string{pooled, direct, bouncer} {
			d, err := b.latency(ctx, uri)
			if err != nil {
				return nil, err
			}
			added[i] = append(added[i], d)
		}
	}
	us := func(s series) string { return fmt.Sprintf("%d µs", s.at(0.5).Microseconds()) }
	rows = append(rows,
		row{"p50 of one client, pooled host", us(added[0]), us(added[2]), "PgBouncer", ratio(added[0], added[2]), ""},
		row{"p50 of one client, pooled host", us(added[0]), us(added[1]), "the endpoint's own host", ratio(added[0], added[1]), "≤ + 30 µs"})
	return rows, nil
}

// poolbench returns transactions per second.
func (b *bench) poolbench(ctx context.Context, uri string, clients int, args []string) (float64, error) {
	args = append(args, "-n", "-c", strconv.Itoa(clients), "-j", strconv.Itoa(min(clients, 2)), "-T", strconv.Itoa(b.seconds+clients/50), uri) // connecting counts
	out, err := exec.CommandContext(ctx, b.pgbenchPath, args...).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("pgbench %s: %w: %s", strings.Join(args, " "), err, out)
	}
	m := tpsLine.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("pgbench printed no tps: %s", out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

// latency is the median of one client's transactions.
func (b *bench) latency(ctx context.Context, uri string) (time.Duration, error) {
	dir, err := os.MkdirTemp(b.dir, "latency")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	cmd := exec.CommandContext(ctx, b.pgbenchPath, "-n", "-S", "-M", "simple", "-c", "1", "-T", strconv.Itoa(b.seconds), "-l", uri)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("pgbench: %w: %s", err, out)
	}
	logs, err := filepath.Glob(filepath.Join(dir, "pgbench_log.*"))
	if err != nil || len(logs) != 1 {
		return 0, fmt.Errorf("pgbench wrote %d logs: %w", len(logs), err)
	}
	raw, err := os.ReadFile(logs[0])
	if err != nil {
		return 0, err
	}
	var all series
	for lines := bufio.NewScanner(bytes.NewReader(raw)); lines.Scan(); {
		var client, n, us int64
		if _, err := fmt.Sscan(lines.Text(), &client, &n, &us); err == nil {
			all = append(all, time.Duration(us)*time.Microsecond)
		}
	}
	return all.at(0.5), nil
}

// startBouncer puts a PgBouncer in front of the main endpoint's compute, with TLS and SCRAM, and returns how to connect to it.
func (b *bench) startBouncer(ctx context.Context) (uri string, stop func() error, err error) {
	u, err := url.Parse(b.main.uri)
	if err != nil {
		return "", nil, err
	}
	password, _ := u.User.Password()
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	port := ln.Addr().(*net.TCPAddr).Port
	_ = ln.Close()
	dir := filepath.Join(b.dir, "pgbouncer")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", nil, err
	}
	// A key of the same kind as ours.
	openssl := exec.CommandContext(ctx, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-days", "2", "-subj", "/CN=localhost", "-keyout", filepath.Join(dir, "key.pem"), "-out", filepath.Join(dir, "cert.pem"))
	if out, err := openssl.CombinedOutput(); err != nil {
		return "", nil, fmt.Errorf("openssl: %w: %s", err, out)
	}
	config := fmt.Sprintf(`[databases]
* = host=%s port=5432
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = scram-sha-256
auth_file = %[3]s/users
pool_mode = transaction
default_pool_size = 20
max_client_conn = 15000
client_tls_sslmode = require
client_tls_key_file = %[3]s/key.pem
client_tls_cert_file = %[3]s/cert.pem
ignore_startup_parameters = extra_float_digits
log_connections = 0
log_disconnections = 0
`, b.socket(b.main), port, dir)
	err = errors.Join(os.WriteFile(filepath.Join(dir, "ini"), []byte(config), 0o644),
		os.WriteFile(filepath.Join(dir, "users"), []byte(fmt.Sprintf("%q %q\n", u.User.Username(), password)), 0o644),
		os.Chmod(filepath.Join(dir, "key.pem"), 0o644))
	if err != nil {
		return "", nil, err
	}
	var log bytes.Buffer
	cmd := exec.Command("pgbouncer", "-q", filepath.Join(dir, "ini"))
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: b.cred}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() error {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		return nil
	}
	q := url.Values{"sslmode": {"require"}}
	own := url.URL{Scheme: "postgresql", User: u.User, Host: fmt.Sprintf("127.0.0.1:%d", port), Path: u.Path, RawQuery: q.Encode()}
	for deadline := time.Now().Add(readyLimit); ; {
		err := firstRowOf(ctx, own.String())
		if err == nil {
			return own.String(), stop, nil
		}
		if time.Now().After(deadline) {
			return "", nil, errors.Join(err, stop(), errors.New(log.String()))
		}
		time.Sleep(20 * time.Millisecond)
	}
}
