import java.io.File;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.security.PrivilegedExceptionAction;
import java.util.Arrays;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;

import com.sun.management.OperatingSystemMXBean;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.security.UserGroupInformation;
import org.apache.hadoop.security.token.Token;

/**
 * The Java way of issuing tokens, to measure ours against: a superuser logged in from its keytab asks the NameNode for
 * delegation tokens in the names of other users.
 *
 * <p>Arguments: configuration-folder principal keytab renewer distinct|one threads warm-up-count count. In "distinct"
 * each token is for another user, who gets a proxy user and a file system of his own, closed afterwards; in "one" all
 * are for one user, whose proxy user and file system are made once. Prints one JSON object on standard output.
 */
public final class IssuePeer {
    private interface Issuer {
        void issue(int number) throws Exception;
    }

    public static void main(String[] args) throws Exception {
        Configuration conf = new Configuration(false);
        conf.addResource(new Path(new File(args[0], "core-site.xml").toURI()));
        conf.addResource(new Path(new File(args[0], "hdfs-site.xml").toURI()));
        UserGroupInformation.setConfiguration(conf);
        UserGroupInformation.loginUserFromKeytab(args[1], args[2]);
        String renewer = args[3];
        int threads = Integer.parseInt(args[5]);
        int warmUp = Integer.parseInt(args[6]);
        int count = Integer.parseInt(args[7]);

        Issuer issuer;
        switch (args[4]) {
            case "distinct":
                issuer = number -> {
                    UserGroupInformation user = proxy(String.format("bench%04d", number));
                    FileSystem files = open(user, conf);
                    try {
                        token(user, files, renewer);
                    } finally {
                        files.close();
                    }
                };
                break;
            case "one":
                UserGroupInformation user = proxy("bench0000");
                FileSystem files = open(user, conf);
                issuer = number -> token(user, files, renewer);
                break;
            default:
                throw new IllegalArgumentException("neither distinct nor one: " + args[4]);
        }
        run(issuer, threads, warmUp);
        OperatingSystemMXBean system =
            (OperatingSystemMXBean) java.lang.management.ManagementFactory.getOperatingSystemMXBean();
        long cpu = system.getProcessCpuTime();
        long start = System.nanoTime();
        long[] latencies = run(issuer, threads, count);
        double seconds = (System.nanoTime() - start) / 1e9;
        cpu = system.getProcessCpuTime() - cpu;
        Arrays.sort(latencies);
        System.out.printf(
            java.util.Locale.ROOT,
            "{\"per_second\":%.1f,\"p50_ms\":%.4f,\"p99_ms\":%.4f,\"cpu_ms\":%.4f,\"rss_mib\":%.1f}%n",
            count / seconds,
            latencies[count / 2] / 1e6,
            latencies[(int) (count * 0.99)] / 1e6,
            cpu / 1e6 / count,
            residentMebibytes());
        System.exit(0);
    }

    private static double residentMebibytes() throws Exception {
        for (String line : Files.readAllLines(Paths.get("/proc/self/status"))) {
            if (line.startsWith("VmRSS:")) {
                return Long.parseLong(line.replaceAll("[^0-9]", "")) / 1024.0;
            }
        }
        throw new IllegalStateException("/proc/self/status has no VmRSS");
    }

    private static UserGroupInformation proxy(String user) throws Exception {
        return UserGroupInformation.createProxyUser(user, UserGroupInformation.getLoginUser());
    }

    private static FileSystem open(UserGroupInformation user, Configuration conf) throws Exception {
        return user.doAs((PrivilegedExceptionAction<FileSystem>) () ->
            FileSystem.newInstance(FileSystem.getDefaultUri(conf), conf));
    }

    private static void token(UserGroupInformation user, FileSystem files, String renewer) throws Exception {
        Token<?> token = user.doAs((PrivilegedExceptionAction<Token<?>>) () -> files.getDelegationToken(renewer));
        if (token == null) {
            throw new IllegalStateException("the NameNode gave no token");
        }
    }

    /** Issues {@code count} tokens with {@code threads} at once; nanoseconds each took. */
    private static long[] run(Issuer issuer, int threads, int count) throws Exception {
        long[] latencies = new long[count];
        AtomicInteger next = new AtomicInteger();
        CountDownLatch go = new CountDownLatch(1);
        ExecutorService pool = Executors.newFixedThreadPool(threads);
        Future<?>[] workers = new Future<?>[threads];
        for (int worker = 0; worker < threads; worker++) {
            workers[worker] = pool.submit(() -> {
                go.await();
                for (int number = next.getAndIncrement(); number < count; number = next.getAndIncrement()) {
                    long start = System.nanoTime();
                    issuer.issue(number);
                    latencies[number] = System.nanoTime() - start;
                }
                return null;
            });
        }
        go.countDown();
        for (Future<?> worker : workers) {
            worker.get();
        }
        pool.shutdown();
        return latencies;
    }
}
